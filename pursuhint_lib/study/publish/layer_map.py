"""The layer map of the report: every choice of hint layers worked out beforehand, and the drawing that shows
them.
"""

import json
import re

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColorBar, ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from ...plots.layers import cluster_colour
from ...settings import Profile
from ..grid.arms import ARMS, NUMBERED, choose_points
from ..grid.hint_layers import LayerReport, stored_similarity

# Numbers of hint layers to choose from, as far as the teacher has so many sub-blocks.
FEWEST, MOST = 2, 6
# Digits of a similarity in the drawing.
DIGITS = 3
# Arms without a choice to show.
WITHOUT_POINTS = ("none",)
# Where the page puts the drawing; the script of the page finds the parts of the drawing by their names.
TARGET = "layer-map-plot"


def layer_map_data(profile: Profile) -> dict:
    """Everything that the layer map can show, from the stored similarities; nothing is computed on images.

    **Returns:** ``selectors`` (name, and whether it needs a metric), ``metrics``, ``colours`` of clusters,
    ``start`` (the choice shown first) and ``teachers``: for each that has been profiled its sub-blocks,
    numbers of points, matrices (row by row) and choices, by selector, metric (empty for selectors that need
    none) and K. Numbers of sub-blocks are 1-based.

    **Raises:** ``SettingsError`` naming a file of the hints that is damaged.
    """
    names = dict.fromkeys(pair.teacher for pair in profile.all_pairs)
    reports = {teacher: stored_similarity(profile, teacher) for teacher in names}
    selectors = _selectors(profile)
    teachers = [_teacher(name, report, selectors) for name, report in reports.items() if report]
    start = {"metric": profile.metrics[0], "selector": selectors[0]["name"], "k": profile.pairs[0].k}
    colours = [cluster_colour(label) for label in range(MOST)]
    return {
        "selectors": selectors,
        "metrics": list(profile.metrics),
        "colours": colours,
        "start": start,
        "teachers": teachers,
    }


def _selectors(profile: Profile) -> list[dict]:
    """Ways to choose, those first that look at similarities: the paper's own is the first of all."""
    drawn = [arm for arm in profile.arms if arm.startswith(tuple(NUMBERED))] or ["random-1"]
    with_metric = [name for name in ARMS if name.endswith("-") and name not in NUMBERED]
    others = [name for name in ARMS if not name.endswith("-") and name not in WITHOUT_POINTS]
    return [{"name": name, "metric": name in with_metric} for name in (*with_metric, *others, *drawn)]


def _teacher(name: str, report: LayerReport, selectors: list[dict]) -> dict:
    layers = report.layer_map.layers
    ks = list(range(min(FEWEST, layers), min(MOST, layers) + 1))
    choices = {
        selector["name"]: {
            metric: [_choice(f"{selector['name']}{metric}", report, k) for k in ks]
            for metric in (report.layer_map.similarity if selector["metric"] else ("",))
        }
        for selector in selectors
    }
    return {
        "name": name,
        "layers": layers,
        "blocks": [block["name"] for block in report.sub_blocks],
        "images": report.images,
        "ends": [end + 1 for end in report.layer_map.stage_ends],
        "ks": ks,
        "choices": choices,
        "similarity": {
            metric: np.round(matrix, DIGITS).ravel().tolist()
            for metric, matrix in report.layer_map.similarity.items()
        },
    }


def _choice(arm: str, report: LayerReport, k: int) -> dict:
    """What an arm takes: points and clusters (none where it has none), and both in words."""
    try:
        choice = choose_points(arm, report.layer_map, k)
    except (ValueError, RuntimeError) as error:
        # Not every way can give every number of points; the page says why.
        return {"points": [], "clusters": [], "text": f"{arm} cannot give {k} hint layers here: {error}."}
    points = sorted(i + 1 for i in choice.indices)
    text = (
        f"{arm}: {'hint layer' if len(points) == 1 else 'hint layers'} {', '.join(map(str, points))} of "
        f"{report.layer_map.layers} sub-blocks."
    )
    if len(points) != k:
        text += f" It takes {len(points)}, though K is {k}."
    clusters = [label + 1 for label in choice.clusters.labels] if choice.clusters else []
    return {"points": points, "clusters": clusters, "text": f"{text} {choice.reason}"}


def layer_map_drawing() -> dict:
    """The empty drawing: a heatmap, a band with the clusters, their frames and the points. The page's script
    fills it.

    **Returns:** what ``Bokeh.embed.embed_item`` takes. Two calls give the same.
    """
    plot = figure(
        x_range=(0, 1),
        y_range=(1, 0),
        width=620,
        height=560,
        sizing_mode="scale_width",
        toolbar_location=None,
        tools="",
        x_axis_label="sub-block of the teacher",
        y_axis_label="sub-block of the teacher",
        name="layer map",
    )
    plot.axis.ticker = FixedTicker(ticks=[], name="numbers")
    mapper = LinearColorMapper(palette=Viridis256, low=0, high=1)
    cells = _draw_shapes(plot, {"field": "value", "transform": mapper})
    tooltips = [("sub-blocks", "@row and @column"), ("similarity", "@value{0.000}")]
    plot.add_tools(HoverTool(renderers=[cells], tooltips=tooltips))
    plot.add_layout(ColorBar(color_mapper=mapper, title="similarity", width=12), "right")
    plot.grid.visible = False
    return _renumbered(json_item(plot, TARGET))


def _source(name: str, *columns: str) -> ColumnDataSource:
    return ColumnDataSource({column: [] for column in columns}, name=name)


def _draw_shapes(plot, colour: dict):
    """All that the script fills, from the ground up; returns the heatmap's cells."""
    cells = _source("cells", "x", "y", "value", "row", "column")
    band = _source("band", "x", "y", "width", "colour")
    frames = _source("frames", "left", "right", "top", "bottom")
    ends, points = _source("ends", "place"), _source("points", "place", "number", "size")
    heatmap = plot.rect("x", "y", 1, 1, source=cells, fill_color=colour, line_color=colour)
    plot.rect("x", "y", "width", 0.96, source=band, fill_color="colour", line_color=None)
    white = {"fill_color": None, "line_color": "white", "line_width": 2.5}
    plot.quad("left", "right", "top", "bottom", source=frames, **white)
    dotted = {"line_color": "white", "line_dash": "dotted", "line_alpha": 0.8}
    plot.vspan(x="place", source=ends, **dotted)
    plot.hspan(y="place", source=ends, **dotted)
    disc = {"fill_color": "white", "line_color": "black", "line_width": 1.5}
    plot.scatter("place", "place", source=points, size="size", **disc)
    centred = {"text_align": "center", "text_baseline": "middle", "text_color": "black"}
    bold = {"text_font_size": "11px", "text_font_style": "bold"}
    plot.text("place", "place", "number", source=points, **centred, **bold)
    return heatmap


def _renumbered(item: dict) -> dict:
    """The same drawing with the ids of its parts counted from 1: Bokeh goes on counting as long as the
    process lives.
    """
    ids: dict[str, str] = {}

    def name(old: re.Match) -> str:
        return ids.setdefault(old[0], f'"part-{len(ids) + 1}"')

    return json.loads(re.sub(r'"p\d{4,}"', name, json.dumps(item)))


def bokeh_script() -> str:
    """Bokeh's own script, without the parts that the layer map does not need, as elements of a page."""
    return Resources(mode="inline", components=["bokeh"], log_level="error").render_js()
