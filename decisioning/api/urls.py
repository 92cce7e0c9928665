"""The API's tree, mounted at /api/ and at /api/v1/. An address nobody knows is a problem document too."""

from django.urls import path, re_path

from decisioning.api import experiments, telemetry
from decisioning.api.door import Nowhere

urlpatterns = [
    path("experiments", experiments.Experiments.as_view()),
    path("experiments/<str:ref>", experiments.OneExperiment.as_view()),
    path("experiments/<str:ref>/kpis", telemetry.TakesRows.as_view()),
    path("experiments/<str:ref>/transitions", experiments.Transitions.as_view()),
    re_path(r"^(?!v1/).*$", Nowhere.as_view()),
]
