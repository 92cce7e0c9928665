from django.apps import AppConfig


class CommandsConfig(AppConfig):
    name = "decisioning.commands"
    label = "commands"
