"""The web doors. An experiment is reached by its number or its key."""

from django.contrib.auth import views as auth
from django.urls import path

from decisioning.access.login import SignIn
from decisioning.board import views

urlpatterns = [
    path("", views.board, name="board"),
    path("board/news", views.news, name="news"),
    path("board/watch", views.watch, name="watch"),
    path("board.csv", views.board_csv, name="board_csv"),
    path("new", views.experiment_new, name="experiment_new"),
    path("new/duration", views.planned_duration, name="planned_duration"),
    path("experiments/<slug:ref>", views.experiment, name="experiment"),
    path("experiments/<slug:ref>/decision", views.decide, name="decide"),
    path("experiments/<slug:ref>/to/<slug:status>", views.move, name="move"),
    path("experiments/<slug:ref>/report", views.report, name="report"),
    path("experiments/<slug:ref>/rows.csv", views.rows_csv, name="rows_csv"),
    path("experiments/<slug:ref>/evidence/<str:digest>.json", views.evidence, name="evidence"),
    path("experiments/<slug:ref>/evidence/<str:digest>/replay", views.replay, name="replay"),
    path("experiments/<slug:ref>/variants/<slug:variant>/picture", views.upload, name="upload"),
    path("assets/<int:pk>", views.asset, name="asset"),
    path("charts/<str:token>.png", views.snapshot, name="snapshot"),
    path("freshness", views.freshness_page, name="freshness"),
    path("refresh-log", views.refresh_log, name="refresh_log"),
    path("refresh-log.csv", views.refresh_log_csv, name="refresh_log_csv"),
    path("quarantine", views.quarantine, name="quarantine"),
    path("quarantine/<int:pk>/replay", views.quarantine_replay, name="quarantine_replay"),
    path("sources", views.sources, name="sources"),
    path("sources/<int:pk>/refresh", views.source_refresh, name="source_refresh"),
    path("promises", views.promises_page, name="promises"),
    path("policies", views.policies_page, name="policies"),
    path("policies/<int:pk>", views.policy, name="policy"),
    path("policies/<int:pk>/<int:number>", views.policy, name="policy_version"),
    path("policies/<int:pk>/<int:number>/backtest", views.policy_backtest, name="policy_backtest"),
    path("policies/<int:pk>/<int:number>/activate", views.policy_activate, name="policy_activate"),
    path("audit", views.audit, name="audit"),
    path("audit.csv", views.audit_csv, name="audit_csv"),
    path("keys", views.keys, name="keys"),
    path("keys/<int:pk>/revoke", views.key_revoke, name="key_revoke"),
    path("webhooks", views.webhooks_page, name="webhooks"),
    path("webhooks/<int:pk>", views.webhook, name="webhook"),
    path("webhooks/<int:pk>/test", views.webhook_test, name="webhook_test"),
    path("webhooks/<int:pk>/delete", views.webhook_delete, name="webhook_delete"),
    path("webhooks/<int:pk>/deliveries/<int:delivery>/again", views.webhook_again, name="webhook_again"),
    path("profile", views.profile, name="profile"),
    path("sign-in", SignIn.as_view(), name="login"),
    path("sign-out", auth.LogoutView.as_view(), name="logout"),
    path("password", auth.PasswordChangeView.as_view(), name="password_change"),
    path("password/changed", auth.PasswordChangeDoneView.as_view(), name="password_change_done"),
]
