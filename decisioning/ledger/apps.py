from django.apps import AppConfig


class LedgerConfig(AppConfig):
    name = "decisioning.ledger"
    label = "ledger"
    verbose_name = "Ledger"
