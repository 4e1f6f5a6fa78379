"""Settings of the project, all from the environment and `.env`; `.env.example` documents each variable."""

from pathlib import Path
from typing import Any

from csp.constants import NONE, SELF
from dotenv import load_dotenv
from environs import Env

from scheduling_app.conf import ScheduleSettings
from tasks_app.conf import TaskSettings
from tasks_app.outbox import DEFAULTS

BASE_DIR = Path(__file__).resolve().parent.parent

load_dotenv(BASE_DIR / ".env")  # into the environment, where `manage.py up` and what it starts look too
env = Env()

# Core
DEBUG = env.bool("DEBUG", False)
SECRET_KEY = env.str("SECRET_KEY", "insecure-for-development-only" if DEBUG else "")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", [])
ROOT_URLCONF = "taskconsole.site_urls"
WSGI_APPLICATION = "taskconsole.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

#: Shows the tables of Celery Beat in the admin, for a team that still runs `manage.py celery beat`.
BEAT_ENABLED = env.bool("BEAT_ENABLED", False)
#: The results of tasks have pages of their own.
ADMIN_HIDES = ["django_celery_results", *([] if BEAT_ENABLED else ["django_celery_beat"])]
#: Further Django apps, whose tasks.py is found like this project's own.
EXTRA_APPS: list[str] = env.list("EXTRA_APPS", [])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_htmx",
    "csp",
    "django_celery_results",
    "django_celery_beat",
    "tasks_app",  # after those whose admin it hides
    "scheduling_app",
    "taskconsole",
    *EXTRA_APPS,
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

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

# Database: one connection kept by each process and thread, checked before each request
DATABASES = {
    "default": env.dj_db_url(
        "DATABASE_URL", "postgres://postgres@127.0.0.1:5432/taskconsole", conn_max_age=None, conn_health_checks=True
    )
}

#: Executions after which Postgres keeps a statement prepared; none behind a proxy that pools transactions.
DATABASES["default"].setdefault("OPTIONS", {})["prepare_threshold"] = (
    env.int("DATABASE_PREPARE_THRESHOLD", 5) if env.str("DATABASE_PREPARE_THRESHOLD", "5") else None
)

# Language, time, static files
LANGUAGE_CODE = "en-us"
USE_I18N = False
USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", "UTC")
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"] if (BASE_DIR / "static").is_dir() else []
# Served straight from the apps' folders: nothing to collect, nothing to forget at a deploy.
WHITENOISE_USE_FINDERS = True

# Security
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("HTTPS_ONLY", False)
SECURE_SSL_REDIRECT = env.bool("HTTPS_ONLY", False)
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("BEHIND_PROXY", False) else None
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "form-action": [SELF],
        "base-uri": [NONE],
        "object-src": [NONE],
        "frame-ancestors": [NONE],
    }
}

# Celery's own settings, with the prefix CELERY_: https://docs.celeryq.dev/en/stable/userguide/configuration.html
REDIS_URL = env.str("REDIS_URL", "redis://127.0.0.1:6379/0")
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", REDIS_URL)
CELERY_RESULT_BACKEND = "tasks_app.backend:RecordBackend"
CELERY_TIMEZONE = TIME_ZONE
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_DEFAULT_QUEUE = "celery_queue"
#: Queue of whatever a schedule or Beat fires.
CRON_QUEUE = "cron_queue"
CELERY_TASK_QUEUES: dict[str, dict[str, Any]] = {
    name: {} for name in [CELERY_TASK_DEFAULT_QUEUE, CRON_QUEUE, *env.list("EXTRA_QUEUES", [])]
}
CELERY_TASK_ROUTES = ["tasks_app.outbox.route_scheduled", env.json("TASK_ROUTES", {})]
#: 0 is the most urgent, 9 the least (kombu's order on Redis).
CELERY_TASK_DEFAULT_PRIORITY = 5
CELERY_BROKER_TRANSPORT_OPTIONS = {
    **DEFAULTS["broker_transport_options"],
    "visibility_timeout": env.int("VISIBILITY_TIMEOUT", 3600),
}
CELERY_WORKER_CONCURRENCY = env.int("WORKER_CONCURRENCY", None)
CELERY_WORKER_PREFETCH_MULTIPLIER = env.int("WORKER_PREFETCH_MULTIPLIER", 1)
CELERY_WORKER_MAX_TASKS_PER_CHILD = env.int("WORKER_MAX_TASKS_PER_CHILD", 10_000)
CELERY_WORKER_MAX_MEMORY_PER_CHILD = env.int("WORKER_MAX_MEMORY_PER_CHILD", 512_000)  # KiB
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_TIME_LIMIT = env.int("TASK_TIME_LIMIT", None)
CELERY_TASK_SOFT_TIME_LIMIT = env.int("TASK_SOFT_TIME_LIMIT", None)
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE: dict[str, dict[str, Any]] = {}

# The console's own, which docs/settings.md explains
TASK_LEASE = env.float("TASK_LEASE", TaskSettings.TASK_LEASE.default)
TASK_MAX_LOST = env.int("TASK_MAX_LOST", TaskSettings.TASK_MAX_LOST.default)
TASK_CENSUS_GRACE = env.float("TASK_CENSUS_GRACE", TaskSettings.TASK_CENSUS_GRACE.default)
TASK_UNREGISTERED_GRACE = env.float("TASK_UNREGISTERED_GRACE", TaskSettings.TASK_UNREGISTERED_GRACE.default)
WORKER_SHUTDOWN_GRACE = env.float("WORKER_SHUTDOWN_GRACE", TaskSettings.WORKER_SHUTDOWN_GRACE.default)
TASK_ARGS_MAX_BYTES = env.int("TASK_ARGS_MAX_BYTES", TaskSettings.TASK_ARGS_MAX_BYTES.default)
TASK_RESULT_MAX_BYTES = env.int("TASK_RESULT_MAX_BYTES", TaskSettings.TASK_RESULT_MAX_BYTES.default)
TASK_ADOPT_UNKNOWN = env.bool("TASK_ADOPT_UNKNOWN", TaskSettings.TASK_ADOPT_UNKNOWN.default)
SCHEDULE_RUNS_KEPT = env.int("SCHEDULE_RUNS_KEPT", ScheduleSettings.SCHEDULE_RUNS_KEPT.default)
HTTP_REQUEST_ALLOW_PRIVATE = env.bool("HTTP_REQUEST_ALLOW_PRIVATE", False)
RUN_COMMAND_ALLOWED = env.list("RUN_COMMAND_ALLOWED", ["check", "clearsessions"])

LOG_LEVEL = env.str("LOG_LEVEL", "INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    "loggers": {"apscheduler": {"level": "WARNING"}},
}

import taskconsole.celery  # noqa: E402, F401 so that shared_task finds this app, whoever starts Django
