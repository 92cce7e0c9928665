"""Every door of the portal. `/api/v1/` is the same tree as `/api/` (OpenLineage clients post there)."""

from django.contrib import admin
from django.urls import include, path

from decisioning.health import healthz, readyz

urlpatterns = [
    path("healthz", healthz),
    path("readyz", readyz),
    path("admin/", admin.site.urls),
    path("api/", include("decisioning.api.urls")),
    path("api/v1/", include("decisioning.api.urls")),
    path("", include("decisioning.board.urls")),
]
