from django.apps import AppConfig


class BoardConfig(AppConfig):
    name = "decisioning.board"
    label = "board"
