from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "decisioning.access"
    label = "access"
    verbose_name = "Access"
