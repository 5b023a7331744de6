"""List the names that recipes and configs may use.

    taskptq list recipes
    taskptq list configs [PACKAGE]

Recipes of installed projects are listed without importing the projects.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator

from taskptq.cli.projects import installed_projects, recipe_folders

Row = tuple[str, ...]


def recipe_rows() -> Iterator[Row]:
    """Yield (scope, method, description) of every method file."""
    from taskptq.recipes import method_names, register_folder
    from taskptq.recipes.folders import describe_method, scopes

    for scope, folder in recipe_folders():
        register_folder(folder, scope=scope)
    for scope in scopes():
        for method in method_names(scope):
            yield scope, method, describe_method(method, scope=scope)


def class_rows(registry_name: str) -> Iterator[Row]:
    """Yield (name, description) of every class of one of our registries.

    Args:
        registry_name: Name of the registry in ``taskptq.registry``.
    """
    from taskptq import registry

    found = getattr(registry, registry_name)
    found.import_from_location()
    for name, cls in sorted(found.module_dict.items()):
        text = inspect.getdoc(cls) or ''
        yield name, text.partition('\n')[0]


def config_rows(package: str) -> Iterator[Row]:
    """Yield the name of every config of a package, as commands take it.

    Raises:
        FileNotFoundError: If the package has none.
    """
    from taskptq.engine.packaged_configs import (
        SEPARATOR,
        config_folder,
        config_names,
    )

    for path in config_names(config_folder(package)):
        if not path.startswith('_base_/') and '/_base_/' not in path:
            yield (f'{package}{SEPARATOR}{path}',)


def project_rows() -> Iterator[Row]:
    """Yield (name, version, description) of every installed project."""
    for entry in installed_projects():
        about = entry.dist.metadata if entry.dist is not None else {}
        yield entry.name, about.get('Version', '-'), about.get('Summary', '')


KINDS: dict[str, Callable[[], Iterator[Row]]] = {
    'recipes': recipe_rows,
    'observers': lambda: class_rows('OBSERVERS'),
    'quantizers': lambda: class_rows('QUANTIZERS'),
    'losses': lambda: class_rows('RECON_LOSSES'),
    'rewrites': lambda: class_rows('REWRITES'),
    'configs': lambda: config_rows('taskptq'),
    'projects': project_rows,
}
NOTES = {
    'recipes': 'A recipe is bits and a method, e.g. w4a8_qdrop or w4a4-8_drd; '
    'bits alone, such as w8a8, are what is recommended.',
    'projects': 'Projects are packages with the entry point taskptq.projects.',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='List names for recipes and configs'
    )
    parser.add_argument('kind', choices=KINDS, help='what to list')
    parser.add_argument(
        'package',
        nargs='?',
        help='with configs: the package, e.g. mmdet (default: taskptq)',
    )
    args = parser.parse_args(argv)
    if args.package is not None and args.kind != 'configs':
        parser.error(f'{args.kind} takes no package, got {args.package}')
    return args


def aligned(rows: list[Row]) -> Iterator[str]:
    """Yield rows as lines, the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        yield '  '.join(cells).rstrip()


def main(argv: list[str] | None = None) -> None:
    """Print one list.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if a package has no configs.
    """
    args = parse_args(argv)
    try:
        rows = list(
            KINDS[args.kind]()
            if args.package is None
            else config_rows(args.package)
        )
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    for line in aligned(rows):
        print(line)
    if args.kind in NOTES:
        print(f'\n{NOTES[args.kind]}')


if __name__ == '__main__':
    main()
