from __future__ import annotations

from scstate_lora.metrics.registry import METRICS, headline_of

OF_PREDICTIONS = {name for name, metric in METRICS.items() if metric.is_of_cells} | {"discrimination"}


def test_the_headline_is_at_most_six_of_predictions_and_six_of_embeddings():
    headline = {name for name, metric in METRICS.items() if metric.headline}
    assert {"pearson_delta", "e_distance", "variance_ratio", "de_overlap50", "pds_cosine"} <= headline
    assert len(headline & OF_PREDICTIONS) <= 6
    assert 1 <= len(headline - OF_PREDICTIONS) <= 6


def test_headline_of_keeps_the_order_and_of_none_gives_all():
    assert headline_of(["mmd", "e_distance", "pearson_delta", "e_distance"]) == ["e_distance", "pearson_delta"]
    assert headline_of(["mmd", "my_own"]) == ["mmd", "my_own"]
