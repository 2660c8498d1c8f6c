"""For the site: pages that lie elsewhere, and links that lead out of docs/.

On GitHub and in a clone the links of README.md and of the pages are right as
they are. In the site README.md is the first page and CHANGELOG.md another,
pictures of the benchmarks come with it, and for all else that is outside of
docs/ links lead to GitHub. A picture that has a version for dark pages is shown
by the site's own switch, which a browser does not know of.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
ABOVE = {'index.md': ROOT / 'README.md', 'changelog.md': ROOT / 'CHANGELOG.md'}
PICTURES = ROOT / 'benchmarks' / 'results'

_PICTURE = re.compile(
  r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" '
  r'srcset="(?P<dark>[^"]*)">\s*'
  r'<img alt="(?P<alt>[^"]*)" src="(?P<light>[^"]*)">\s*</picture>'
)
# `](where)`, but not within the site of another or on the same page.
_LINK = re.compile(r'\]\((?!https?:|#)([^)]+)\)')


def on_files(files, config):
  """Adds what is not in docs/."""
  for name, path in ABOVE.items():
    text = path.read_text(encoding='utf-8')
    files.append(File.generated(config, name, content=text))
  for path in PICTURES.glob('*.svg'):
    name = f'results/{path.name}'
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Lets each link lead where the site has it."""
  folder = ROOT if page.file.src_uri in ABOVE else ROOT / 'docs'

  def link(found):
    where, mark, heading = found[1].partition('#')
    path = (folder / where).resolve()
    return f']({_target(path, config)}{mark}{heading})'

  by_switch = r'![\g<alt>](\g<light>#only-light)![\g<alt>](\g<dark>#only-dark)'
  return _LINK.sub(link, _PICTURE.sub(by_switch, markdown))


def _target(path, config):
  """What the site calls a file of this project."""
  above = {file: name for name, file in ABOVE.items()}
  if path in above:
    return above[path]
  if path.parent == ROOT / 'docs':
    return path.name
  if path.parent == PICTURES and path.suffix == '.svg':
    return f'results/{path.name}'
  if not path.exists():
    raise ValueError(f'A link to {path}, which does not exist.')
  relative = path.relative_to(ROOT).as_posix()
  return f'{config.repo_url.rstrip("/")}/blob/main/{relative}'
