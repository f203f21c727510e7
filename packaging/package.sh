#!/usr/bin/env bash
# Makes the tarball and the .deb of a program that is built, and prints their paths.
#
#   packaging/package.sh PROGRAM
#
# A program that DuckDB is compiled into is for shipping. One that is linked with the prebuilt library of the development
# build carries that library along, is marked `~dev`, and is for testing the package alone. CARGO_TARGET_DIR is where all
# goes, CARGO_DEB the cargo-deb to use.
set -euo pipefail

program=$(realpath "$1")
cd "$(dirname "$0")/.."
stage="$CARGO_TARGET_DIR/release/package"
rm -rf "$stage"
mkdir -p "$stage/lib" "$stage/share"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

strip --strip-debug -o "$stage/vinculo" "$program"
if readelf --dynamic "$program" | grep -q 'NEEDED.*libduckdb\.so'; then
  version="$version~dev"
  cp "$DUCKDB_LIB_DIR"/lib*.so "$stage/lib/"
  patchelf --set-rpath '/usr/lib/vinculo:$ORIGIN/../lib/vinculo' "$stage/vinculo"
  patchelf --set-rpath '/usr/lib/vinculo:$ORIGIN' "$stage/lib/libduckdb.so"
else
  echo "DuckDB is compiled into the program." > "$stage/lib/README"
fi

man="$stage/share/man/man1" completions="$stage/share"
mkdir -p "$man" "$completions/bash-completion/completions" "$completions/zsh/vendor-completions" "$completions/fish/vendor_completions.d"
"$program" completions bash > "$completions/bash-completion/completions/vinculo"
"$program" completions zsh > "$completions/zsh/vendor-completions/_vinculo"
"$program" completions fish > "$completions/fish/vendor_completions.d/vinculo.fish"
"$program" man > "$man/vinculo.1"
gzip -9n "$man/vinculo.1"
mkdir -p "$stage/share/doc/vinculo"
cp src/config/default.toml "$stage/share/doc/vinculo/configuration.toml"
cp -r docs "$stage/share/doc/vinculo/docs"
cp README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$stage/share/doc/vinculo/"
mkdir -p "$stage/share/vinculo"
cp -r packaging/grafana packaging/prometheus "$stage/share/vinculo/"

name="vinculo-$version-$(uname -m)"
tree="$CARGO_TARGET_DIR/release/$name"
rm -rf "$tree"
mkdir -p "$tree/bin" "$tree/lib"
cp "$stage/vinculo" "$tree/bin/"
cp -r "$stage/lib" "$tree/lib/vinculo"
cp -r "$stage/share" "$tree/share"
mkdir -p "$tree/etc"
cp packaging/systemd/vinculo.service "$tree/etc/"
tar --create --gzip --owner=0 --group=0 --directory "$CARGO_TARGET_DIR/release" --file "$CARGO_TARGET_DIR/release/$name.tar.gz" "$name"
rm -rf "$tree"

deb=$("$CARGO_DEB" deb --no-build --no-strip --compress-system --deb-version "$version" --output "$CARGO_TARGET_DIR/release/")
echo "$CARGO_TARGET_DIR/release/$name.tar.gz"
echo "$deb"
