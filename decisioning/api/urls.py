"""The API's tree, mounted at /api/ and at /api/v1/. An address nobody knows is a problem document too."""

from django.urls import path, re_path

from decisioning.api import access, events, experiments, judgement, lineage, policies, records, registry, series
from decisioning.api.door import Nowhere

urlpatterns = [
    path("experiments", experiments.Experiments.as_view()),
    path("experiments/<str:ref>", experiments.OneExperiment.as_view()),
    path("experiments/<str:ref>/kpis", series.Kpis.as_view()),
    path("experiments/<str:ref>/transitions", experiments.Transitions.as_view()),
    path("experiments/<str:ref>/decision", judgement.OneDecision.as_view()),
    path("experiments/<str:ref>/decisions", judgement.Decisions.as_view()),
    path("experiments/<str:ref>/gates", judgement.Gates.as_view()),
    path("experiments/<str:ref>/evaluations", judgement.Evaluations.as_view()),
    path("experiments/<str:ref>/evaluate", judgement.Evaluate.as_view()),
    path("experiments/<str:ref>/evidence/<str:digest>", judgement.OneEvidence.as_view()),
    path("experiments/<str:ref>/evidence/<str:digest>/verify", judgement.Verification.as_view()),
    path("experiments/<str:ref>/audit", records.Audit.as_view()),
    path("experiments/<str:ref>/assets", records.Assets.as_view()),
    path("metrics", registry.Metrics.as_view()),
    path("metrics/<str:key>", registry.OneMetric.as_view()),
    path("refresh-log", records.RefreshLog.as_view()),
    path("freshness", records.Freshness.as_view()),
    path("policies", policies.Policies.as_view()),
    path("policies/<str:name>", policies.OnePolicy.as_view()),
    path("policies/<str:name>/versions", policies.Versions.as_view()),
    path("policies/<str:name>/versions/<int:number>", policies.OneVersion.as_view()),
    path("policies/<str:name>/versions/<int:number>/activate", policies.Activation.as_view()),
    path("keys", access.Keys.as_view()),
    path("keys/<str:ref>", access.OneKey.as_view()),
    path("events", events.TakesEvents.as_view()),
    path("lineage", lineage.Lineage.as_view()),
    path("lineage/batch", lineage.LineageBatch.as_view()),
    path("schemas", events.Schemas.as_view()),
    path("schemas/<str:type_>", events.Schema.as_view()),
    path("quarantine", events.Quarantine.as_view()),
    path("quarantine/<int:pk>/replay", events.Replay.as_view()),
    re_path(r"", Nowhere.as_view()),
]
