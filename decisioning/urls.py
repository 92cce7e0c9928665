"""Every door of the portal. `/api/v1/` is the same tree as `/api/` (OpenLineage clients post there)."""

from django.contrib import admin
from django.urls import include, path

from decisioning.access.login import AdminSignIn
from decisioning.health import healthz, metrics, readyz

urlpatterns = [
    path("healthz", healthz),
    path("readyz", readyz),
    path("metrics", metrics),
    path("admin/login/", AdminSignIn.as_view()),
    path("admin/", admin.site.urls),
    path("api/v1/", include("decisioning.api.urls")),  # first: the tree answers every address below it
    path("api/", include("decisioning.api.urls")),
    path("", include("decisioning.board.urls")),
]

# Under /api/ a problem document, elsewhere the page.
handler400 = "decisioning.api.problems.bad_request"
handler403 = "decisioning.api.problems.permission_denied"
handler404 = "decisioning.api.problems.not_found"
handler500 = "decisioning.api.problems.server_error"
