#!/bin/sh
# Usage: data_link.sh DIR. Makes ./data a link to DIR, where configs look for
# data/<set>/.
set -eu

if [ -z "${1:-}" ]; then
    echo 'Say where the data sets are: make data-link DIR=/path/to/folder' >&2
    exit 1
fi
if [ ! -d "$1" ]; then
    echo "DIR=$1 is not a folder; data/ was left as it is." >&2
    exit 1
fi
target=$(cd "$1" && pwd -P)
if [ -e data ] && [ ! -L data ]; then
    echo 'data/ is a real folder, not a link; move it away first:' \
        'it is not overwritten.' >&2
    exit 1
fi
ln -sfn "$target" data
echo "data -> $target"
