"""The charts of docs/ are those of the numbers in `benchmarks/results/`."""

import json
import pathlib
import re
from xml.etree import ElementTree

import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg

import charts

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
SVG = '{http://www.w3.org/2000/svg}'
DESCRIPTION = '{http://purl.org/dc/elements/1.1/}description'

each = pytest.mark.parametrize(
  'chart', charts.CHARTS, ids=lambda chart: chart.__name__
)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp('drawn')
  list(charts.draw(folder))
  return folder


def said(path):
  """What a chart shows, in whatever place a version of matplotlib puts it."""
  tree = ElementTree.parse(path)
  description = tree.find(f'.//{DESCRIPTION}').text
  texts = sorted(''.join(node.itertext()) for node in tree.iter(f'{SVG}text'))
  assert len(texts) > 10
  return description, texts


def test_committed_charts_are_those_of_the_numbers(drawn):
  names = sorted(path.name for path in RESULTS.glob('*.svg'))
  assert names == sorted(path.name for path in drawn.iterdir())
  for name in names:
    hint = f'{name} is older than its numbers: run `make charts`.'
    assert said(RESULTS / name) == said(drawn / name), hint


def test_the_same_numbers_give_the_same_files(drawn, tmp_path):
  for path in charts.draw(tmp_path):
    assert path.read_bytes() == (drawn / path.name).read_bytes()


def test_dark_charts_differ_in_no_number(drawn):
  for chart in charts.CHARTS:
    light, dark = (drawn / f'{chart.__name__}{s}.svg' for s in ('', '_dark'))
    assert said(light) == said(dark)
    assert light.read_bytes() != dark.read_bytes()


def bars(figure):
  """{(panel, row, whose): length}, of what is drawn."""
  found = {}
  for i, pane in enumerate(figure.axes):
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for container in pane.containers:
      for name, bar in zip(names, container, strict=True):
        found[i, name, container.get_label()] = bar.get_width()
  return found


def numbers(name):
  return json.loads((RESULTS / f'{name}.json').read_text())


def of_cpu():
  who = {
    'auto': 'tfgroupnorm',
    'keras': 'keras.layers',
    'keras, compiled': 'keras.layers, compiled',
    'torch': 'PyTorch',
  }
  for row in numbers('cpu')['ratios']:
    case, _, dtype = row['case'].rpartition(' ')
    if dtype == 'float32' and row['contender'] in who:
      panel = ('forward', 'step').index(row['pass'])
      yield panel, case, who[row['contender']], row['times_slower_than_auto']


PANELS = [(t, p) for t in ('h100', 'v5e') for p in ('forward', 'step')]


def of_blocks():
  for row in numbers('xla_cost_blocks'):
    block, _, dtype = row['block'].rpartition(' ')
    where = row['target'], row['pass']
    if where in PANELS and row['share'] is not None:
      panel = PANELS.index(where)
      yield panel, block, f'tfgroupnorm, {dtype}', row['share']


def of_norms_alone():
  who = {'ours': 'tfgroupnorm', 'keras': 'keras.layers'}
  for row in numbers('xla_cost'):
    case, _, dtype = row['case'].rpartition(' ')
    if dtype == 'float32' and (row['target'], row['pass']) in PANELS:
      panel = PANELS.index((row['target'], row['pass']))
      what = 'traffic' if row['target'] == 'h100' else 'kilocycles'
      yield panel, case, who[row['owner']], row[what]


def of_exactness():
  for row in numbers('exactness'):
    name = f'mean {row["mean"]:,.0f}, deviation {row["std"]:g}'
    yield 0, name, 'tfgroupnorm, compiled', row['compiled']
    yield 0, name, 'tfgroupnorm, plain', row['plain']
    yield 0, name, 'keras.layers', row['keras']
    yield 0, name, 'PyTorch', row['torch']


def of_memory():
  for row in numbers('memory')['kept']:
    name = row['case'].removesuffix(' float32')
    yield 0, name, 'tfgroupnorm', row['ours']
    yield 0, name, 'keras.layers', row['keras']


BARS = {
  charts.cpu: of_cpu,
  charts.blocks: of_blocks,
  charts.alone: of_norms_alone,
  charts.exactness: of_exactness,
  charts.memory: of_memory,
}


@pytest.mark.parametrize('chart', BARS, ids=lambda chart: chart.__name__)
def test_each_row_has_its_bars(chart):
  wanted = {(i, name, who): value for i, name, who, value in BARS[chart]()}
  assert len(wanted) > 9
  shown = bars(chart())
  assert {key: v for key, v in shown.items() if v == v} == wanted


def test_each_line_of_growth_has_its_points():
  who = {'tfgroupnorm': 'auto', 'keras.layers': 'keras', 'PyTorch': 'torch'}
  figure = charts.cpu_growth()
  rows = [r for r in numbers('cpu')['growth'] if r['pass'] == 'step']
  assert len({row['varied'] for row in rows}) == len(figure.axes) == 3
  for pane in figure.axes:
    assert len(pane.lines) == 3
    for line in pane.lines:
      key = pane.get_xlabel(), who[line.get_label()]
      assert list(zip(*line.get_data(), strict=True)) == [
        (row['size'], row['relative_time'])
        for row in rows
        if (row['varied'], row['contender']) == key
      ]


@each
def test_nothing_is_cut_off(chart):
  """All text lies within the picture."""
  with rc_context(charts.STYLE):
    figure = chart()
    FigureCanvasAgg(figure).draw()
  edge = figure.bbox.padded(1)
  shown = [
    (text, text.get_window_extent())
    for text in figure.findobj(lambda a: hasattr(a, 'get_text'))
    if text.get_visible() and text.get_text()
  ]
  assert len(shown) > 10
  for text, box in shown:
    assert edge.x0 <= box.x0 and box.x1 <= edge.x1, text
    assert edge.y0 <= box.y0 and box.y1 <= edge.y1, text


PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PICTURE = re.compile(
  r'<picture>\n'
  r'  <source media="\(prefers-color-scheme: dark\)" srcset="(.*)_dark.svg">\n'
  r'  <img alt="(.+)" src="(.*).svg">\n'
  r'</picture>'
)


def test_pictures_of_pages_have_words_and_are_there():
  shown = set()
  for page in PAGES:
    text = page.read_text()
    pairs = PICTURE.findall(text)
    assert len(pairs) == text.count('<picture>') == text.count('<img')
    for dark, words, light in pairs:
      assert dark == light and len(words) > 40
      shown.add((page.parent / f'{light}.svg').resolve())
    for words, where in re.findall(r'!\[(.*?)\]\((.*?)\)', text, re.DOTALL):
      assert len(words) > 20
      assert (page.parent / where).is_file()
  assert {path.stem for path in shown} == {c.__name__ for c in charts.CHARTS}
  assert all(path.is_file() for path in shown)
