# What the packages have in common.  Sourced by the scripts here, not run.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# The distribution's tools, whatever other python3 comes first on the path, and as they are meant to run:
# under tox some would not find their own modules.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset "${!PYTHON@}"

packaging=$repository/contrib/packaging
# One source for the version of everything.
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repository/pyproject.toml")
# The same source makes the same package, whenever it is built.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$repository" log -1 --format=%ct 2>/dev/null || stat -c %Y "$repository/CHANGELOG.md")}
export SOURCE_DATE_EPOCH

# Copy what belongs into a package of the sources to directory $1.
copy_sources() {
    mkdir -p "$1/contrib"
    cp -a "$repository"/{nfpkd,schemas,pyproject.toml,README.md,CHANGELOG.md,LICENSE} "$1"
    cp -a "$repository"/contrib/{apparmor,completion,examples,man,systemd} "$1/contrib"
    find "$1" -name __pycache__ -prune -exec rm -rf {} +
}
