"""Django, loaded, as a WSGI application; `decisioning.asgi` hands it requests."""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import get_resolver

from decisioning.database import liveness

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "decisioning.settings")
application = get_wsgi_application()
get_resolver().url_patterns  # noqa: B018 - loads every view now, not when the first person asks
liveness.watch()
