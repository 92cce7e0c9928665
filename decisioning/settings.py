"""One settings file. What differs between installations comes from the environment; secrets come from nowhere else."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.utils.csp import CSP
from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DECISIONING_HOME", BASE_DIR / ".data"))

# Production is the default; `manage.py up` on a loopback address serves plain HTTP and says so with DECISIONING_INSECURE_HTTP=1.
DEBUG = False
INSECURE_HTTP = os.environ.get("DECISIONING_INSECURE_HTTP") == "1"
SECRET_KEY = os.environ.get("DECISIONING_SECRET_KEY") or os.urandom(48).hex()  # nothing shared, nothing defaulted
PUBLIC_URL = os.environ.get("DECISIONING_URL", "http://127.0.0.1:8000").rstrip("/")
ALLOWED_HOSTS = [
    *filter(None, os.environ.get("DECISIONING_ALLOWED_HOSTS", "").split(",")),
    urlsplit(PUBLIC_URL).hostname or "localhost",
    "localhost",
    "127.0.0.1",
    "[::1]",
]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

ROLE = os.environ.get("DECISIONING_ROLE", "web")  # which of the three logins below is ours; requests are the default
INSTALLED_APPS = [
    # Workers show no admin: what only its pages need, which is most of the web side, they do not load.
    "django.contrib.admin.apps.SimpleAdminConfig" if ROLE == "worker" else "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "auditlog",
    "django_filters",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "decisioning.access",
    "decisioning.ledger",
    "experiments",
    "telemetry",
    "gates",
    "decisioning.board",
    "decisioning.commands",
]

MIDDLEWARE = [
    "decisioning.access.proxies.TrustedProxies",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "decisioning.access.headers.PermissionsPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "decisioning.availability.middleware.StaleIfErrorMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "decisioning.access.middleware.BoundTransaction",
    "decisioning.access.limits.RateLimited",
    "decisioning.access.limits.BoundedSearch",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "decisioning.access.middleware.SaysNotAllowed",
]

ROOT_URLCONF = "decisioning.urls"
WSGI_APPLICATION = "decisioning.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# Three logins, three sets of rights (docs/adr/0005-row-security-with-three-logins.md).
ROLE_URLS = {
    "web": os.environ.get("DATABASE_URL", ""),
    "worker": os.environ.get("DATABASE_WORKER_URL", ""),
    "owner": os.environ.get("DATABASE_OWNER_URL", ""),
}


# Who waits for a lock holds up all who come after: a migration gives way to writers, a request to its client.
LOCK_TIMEOUT = {"web": "2s", "owner": "1500ms"}
SESSION = {  # roles.sql gives the roles the same, which hold through a pooler too
    "search_path": "public,metadata,metrics,audit",
    "lock_timeout": LOCK_TIMEOUT.get(ROLE, "10s"),
    "statement_timeout": "30s" if ROLE == "web" else "600s",
    "idle_in_transaction_session_timeout": "300s",
}


# Behind a pooler such as PgBouncer a session is anybody's from one transaction to the next: nothing is set or prepared in it.
POOLED = os.environ.get("DECISIONING_POOL_MODE") == "transaction"


def database(url: str) -> dict[str, object]:
    """Django's settings for a postgresql:// URL with anything libpq knows: several hosts, target_session_attrs, sslmode, sslrootcert.

    No URL gives a name that cannot connect, so commands without a database still run.

    >>> found = database("postgresql://web:s%40y@one:5432,two:5433/portal?target_session_attrs=read-write")
    >>> [found[name] for name in ("HOST", "PORT", "USER", "PASSWORD", "NAME")]
    ['one,two', '5432,5433', 'web', 's@y', 'portal']
    >>> found["OPTIONS"]["target_session_attrs"]
    'read-write'
    """
    said = conninfo_to_dict(url)
    options = "" if POOLED else " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    options = f"{options} {said.pop('options', '')}".strip()
    return {
        "ENGINE": "decisioning.database.backend",
        "NAME": said.pop("dbname", "decisioning"),
        "USER": said.pop("user", ""),
        "PASSWORD": said.pop("password", ""),
        "HOST": said.pop("host", ""),
        "PORT": said.pop("port", ""),
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": POOLED,
        "OPTIONS": {
            # A hung server ignores statement_timeout, so there are deadlines on this side as well; see database.liveness.
            "connect_timeout": 10,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "application_name": f"decisioning-{ROLE}",
            **said,
            **({"options": options} if options else {}),
        },
    }


DATABASES = {"default": database(ROLE_URLS[ROLE])}
if ROLE == "web" and (replica_url := os.environ.get("DATABASE_REPLICA_URL")):
    DATABASES["replica"] = database(replica_url) | {"TEST": {"MIRROR": "default"}}  # reads go there while it is fresh
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def mailer(url: str) -> dict[str, object]:
    """Django's settings for a smtp://, smtps:// or console: URL. Every step of sending is over within seconds."""
    parts = urlsplit(url)
    if parts.scheme == "console":
        return {"BACKEND": "django.core.mail.backends.console.EmailBackend"}
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise ValueError("DECISIONING_EMAIL_URL must be smtp://user:password@host:port, smtps://... or console:")
    return {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {
            "host": parts.hostname,
            "port": parts.port,
            "username": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "use_ssl": parts.scheme == "smtps",
            "use_tls": parts.scheme == "smtp" and parts.hostname not in ("localhost", "127.0.0.1", "::1"),
            "timeout": 5,
        },
    }


# Redis only wakes things up: every value in it may vanish at any moment (docs/adr/0004-postgresql-is-the-truth.md).
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
REDIS_OPTIONS = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1, "retry_on_timeout": False}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "OPTIONS": REDIS_OPTIONS,
    },
}

# Fixed windows, as docs/api.md says: per key or person, and per address for requests with neither.
KEY_RATE = os.environ.get("DECISIONING_KEY_RATE", "600/m")
# Whose CloudEvents a subscription may send here, such as eventgrid.azure.net; asked by OPTIONS before the first one.
EVENT_ORIGINS = {
    name.strip().lower() for name in os.environ.get("DECISIONING_EVENT_ORIGINS", "").split(",") if name.strip()
}
LINEAGE_RATE = os.environ.get("DECISIONING_LINEAGE_RATE", "6000/m")  # of a key without a rate of its own
ADDRESS_RATE = os.environ.get("DECISIONING_ADDRESS_RATE", "600/m")
METRICS_TOKEN = os.environ.get("DECISIONING_METRICS_TOKEN", "")  # who sends it may read /metrics from anywhere
TRUSTED_PROXIES = [name for name in os.environ.get("DECISIONING_TRUSTED_PROXIES", "").split(",") if name]
# Networks that webhooks and sources may call though they are not public.
OUTBOUND_ALLOW = [name for name in os.environ.get("DECISIONING_OUTBOUND_ALLOW", "").split(",") if name]

# E-mail is off unless DECISIONING_EMAIL_URL names a server: smtp://user:password@host:587 (STARTTLS), smtps://...:465, or console:
EMAIL_URL = os.environ.get("DECISIONING_EMAIL_URL", "")
EMAIL_ON = bool(EMAIL_URL)
DEFAULT_FROM_EMAIL = os.environ.get(
    "DECISIONING_EMAIL_FROM", f"decisioning@{urlsplit(PUBLIC_URL).hostname or 'localhost'}"
)
MAILERS = {"default": mailer(EMAIL_URL)} if EMAIL_ON else {}

AUTHENTICATION_BACKENDS = ["decisioning.access.login.GuardedBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": name}
    for name in (
        "django.contrib.auth.password_validation.UserAttributeSimilarityValidator",
        "decisioning.access.login.NewPassword",
        "django.contrib.auth.password_validation.CommonPasswordValidator",
        "django.contrib.auth.password_validation.NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "login"

AUDITLOG_LOGENTRY_MODEL = "ledger.Entry"  # filled by database triggers; auditlog's own signals stay silent
AUDITLOG_DISABLE_REMOTE_ADDR = True
AUDITLOG_STORE_JSON_CHANGES = True

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = HOME / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = True
APPEND_SLASH = False

DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 1024 * 1024
SECURE_SSL_REDIRECT = False  # the proxy in front redirects; /healthz must answer plain HTTP inside
SECURE_HSTS_SECONDS = 0 if INSECURE_HTTP else 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = not INSECURE_HTTP
SECURE_HSTS_PRELOAD = not INSECURE_HTTP
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_NAME = "decisioning_session" if INSECURE_HTTP else "__Host-session"
CSRF_COOKIE_NAME = "decisioning_csrf" if INSECURE_HTTP else "__Host-csrf"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not INSECURE_HTTP
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "decisioning.access.login.csrf_failure"
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF, "data:"],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
}
SILENCED_SYSTEM_CHECKS = ["security.W008", "mail.W001"]  # see SECURE_SSL_REDIRECT; without a mail server nothing tries

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["decisioning.access.authentication.BoundPrincipal"],
    "DEFAULT_PERMISSION_CLASSES": ["decisioning.access.permissions.Scoped"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["decisioning.api.parsers.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "decisioning.api.problems.handle",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # Accept says which format
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Decisioning",
    "DESCRIPTION": "Ideas become experiments; telemetry flows in; gates propose; people decide; all of it can be proved later.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    # It would read the tree twice, at /api/ and at /api/v1/, and call the second one a collision; tests hold the document.
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
    "ENUM_NAME_OVERRIDES": {
        "Action": "decisioning.api.shapes.fields.ACTIONS",
        "RecommendationState": "decisioning.api.shapes.fields.RECOMMENDATION_STATES",
        "AnswerAction": "decisioning.api.shapes.fields.ANSWERS",
        "OverrideTo": "decisioning.api.shapes.fields.OVERRIDES",
        "FreshnessState": "decisioning.api.shapes.fields.FRESHNESS_STATES",
        "KpiRole": "decisioning.api.shapes.fields.ROLES",
        "Verdict": "decisioning.api.shapes.fields.VERDICTS",
        "DoubtIs": "decisioning.api.shapes.fields.DOUBTS",
        "ExperimentStatus": "decisioning.api.shapes.fields.STATUSES",
        "Change": "decisioning.api.shapes.fields.CHANGES",
        "BacktestState": "decisioning.api.shapes.fields.BACKTEST_STATES",
        "MetricKind": "decisioning.api.serializers.METRIC_KINDS",
        "Direction": "decisioning.api.serializers.DIRECTIONS",
        "ScheduleState": "decisioning.api.shapes.fields.SCHEDULE_STATES",
        "ToldBy": "decisioning.api.shapes.fields.TOLD_BY",
        "ScheduleWord": "experiments.expected.WORDS",
        "Temporality": "decisioning.api.serializers.TEMPORALITIES",
        "SourceKind": "decisioning.api.serializers.SOURCE_KINDS",
        "Scope": "decisioning.api.serializers.SCOPES",
        "ChannelKind": "decisioning.api.serializers.CHANNEL_KINDS",
        "EventName": "decisioning.api.serializers.TOLD",
        "DeliveryState": "decisioning.api.shapes.fields.DELIVERY_STATES",
    },
}

SOURCES_DIR = Path(os.environ.get("DECISIONING_FILES", HOME / "files"))  # CSV and Parquet files that sources may read
SOURCE_PULLS = int(
    os.environ.get("DECISIONING_PULLS", "3")
)  # runs of sources at a time, all in threads of one worker's process
QUOTAS = {  # of a team that has none of its own
    "rows_a_day": int(os.environ.get("DECISIONING_QUOTA_ROWS_A_DAY", "100000000")),
    "experiments": int(os.environ.get("DECISIONING_QUOTA_EXPERIMENTS", "5000")),
    "sources": int(os.environ.get("DECISIONING_QUOTA_SOURCES", "200")),
    "webhooks": int(os.environ.get("DECISIONING_QUOTA_WEBHOOKS", "50")),
}
RETENTION_DAYS = int(os.environ.get("DECISIONING_RETENTION_DAYS", "400"))
ANCHOR = Path(os.environ.get("DECISIONING_ANCHOR", HOME / "audit-head.jsonl"))  # outlives whoever writes it

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {"()": "decisioning.logs.Json"},
        "line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": os.environ.get("DECISIONING_LOG_FORMAT", "json")}
    },
    "root": {"handlers": ["console"], "level": os.environ.get("DECISIONING_LOG_LEVEL", "INFO")},
    # Django would say every 4xx, and its own handler is no JSON.
    "loggers": {"django": {"handlers": [], "propagate": True}, "django.request": {"level": "ERROR"}},
}
