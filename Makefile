# The commands of this project; `make` lists them. Whatever a fresh Debian or Ubuntu lacks is installed on the way
# (scripts/system-packages.sh), and everything that is fetched or compiled stays outside the clone, under ~/.cache/vinculo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vinculo
export CARGO_TARGET_DIR ?= $(cache)/target

# An own assignment, so that a step of it that fails ends the recipe.
cargo_env := exports=$$(scripts/cargo-env.sh); eval "$$exports";
program := $(CARGO_TARGET_DIR)/release/vinculo
# Extra arguments of `demo` and `test`: make demo ARGS="--people 50 --serve", make test ARGS=kill_nine (these tests alone)
ARGS ?=
# What is compiled in beside what is there as it comes: make build FEATURES=otlp, and so for `dist`.
FEATURES ?=
# Unit tests need no speed: without it they are built in half a minute instead of several. What is shipped is what the
# tests under tests/ call. Features that are off as it comes are tested here, so that they cost no further build.
fast_build := --config profile.release.package.vinculo.opt-level=0
# Tests that need the machine for themselves: they hold the daemon against the clock.
alone := budget::
deny_version := 0.20.2
deb_version := 3.8.0

.PHONY: help build demo test screenshots readers analysts schemathesis soak bench sizing docs lint deny dist disttest cargo-deb env clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: ## build the program; the last line is its path
	@$(cargo_env) cargo build --release --locked --features '$(FEATURES)' --bin vinculo
	@echo '$(program)'

demo: ## build, then run the whole flow offline on 500 simulated people (ARGS="--people 50 --serve")
	@$(cargo_env) cargo build --release --locked --bin vinculo
	@'$(program)' demo $(ARGS)

# What is not cargo's runs after all of its tests, so that all summaries stand at the end.
test: ## run every test, the browser's too, then the readers of the lake, dbt, the notebooks and schemathesis (ARGS=name picks tests)
	@scripts/system-packages.sh curl:curl systemd-analyze:systemd
	@$(cargo_env) promtool=$$(scripts/promtool.sh); export VINCULO_PROMTOOL=$$promtool; \
	  export VINCULO_READERS=$$(scripts/readers-python.sh) VINCULO_BROWSER=$$(scripts/browser-python.sh); \
	  cargo test --release --locked --lib --features otlp $(fast_build) $(ARGS); \
	  cargo test --release --locked --test '*' $(or $(ARGS),-- --skip '$(alone)'); \
	  if [ -z '$(ARGS)' ]; then cargo test --release --locked --test it -- --test-threads 1 '$(alone)'; fi
	@if [ -z '$(ARGS)' ]; then for part in readers analysts schemathesis; do $(MAKE) --no-print-directory "$$part"; done; fi

# Times and ids in them are of the day: they are taken again when pages look different, and not by `test`.
screenshots: ## take the pictures of docs/dashboard.md again
	@scripts/system-packages.sh pngquant:pngquant
	@$(cargo_env) export VINCULO_BROWSER=$$(scripts/browser-python.sh) VINCULO_SCREENSHOTS='$(CURDIR)/docs/screenshots'; \
	  cargo test --release --locked --test it every_page_is_sound_in_a_real_browser
	@pngquant --force --ext .png --speed 1 --strip 32 -- docs/screenshots/*.png

readers: ## let DuckDB 1.1.3, 1.5.6, 2.0.0, pyarrow, polars and pandas read a demo's lake
	@$(cargo_env) python=$$(scripts/readers-python.sh); \
	  "$$python" tests/readers/selftest.py; \
	  for version in $$(grep -v '^#' tests/readers/duckdb-versions.txt); do \
	    "$$python" tests/readers/features.py "$$(dirname "$$(dirname "$$python")")/duckdb/$$version"; \
	  done; \
	  cargo build --release --locked --bin vinculo; \
	  folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	  '$(program)' demo --people 100 --dir "$$folder/demo" < /dev/null; \
	  "$$python" tests/readers/check.py "$$folder/demo/lake"; \
	  "$$python" tests/readers/oracle.py "$$folder/demo/lake"

soak: ## a day in two minutes: 2,000 links with faults; the numbers are true, and nothing grows
	@$(cargo_env) cargo test --release --locked --test it a_day_of -- --ignored --nocapture

# Belvo's description of its API is not part of this repository; without it that half is skipped, and said so.
BELVO_OPENAPI ?= ../shared/belvo/openapi.yaml
schemathesis: ## throw made-up requests at the API and at the simulated Belvo
	@$(cargo_env) python=$$(scripts/python-venv.sh schemathesis tests/schemathesis/requirements.txt); \
	  cargo build --release --locked --bin vinculo; \
	  "$$python" tests/schemathesis/check.py '$(program)' '$(BELVO_OPENAPI)'

# ARGS=--write keeps what the notebooks give, after a change that is meant.
analysts: ## build the dbt package and execute the notebooks against a demo's lake
	@$(cargo_env) cargo build --release --locked --bin vinculo; \
	  python=$$(scripts/python-venv.sh notebooks examples/notebooks/requirements.txt); \
	  folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	  '$(program)' demo --dir "$$folder/demo" < /dev/null > /dev/null; \
	  scripts/dbt-build.sh "$$folder/demo/lake"; \
	  "$$python" examples/notebooks/execute.py "$$folder/demo/lake" $(filter --write,$(ARGS))

bench: ## measure against DuckDB, a hand-written script and the disk, side by side; prints ratios
	@$(cargo_env) export VINCULO_BENCH_PYTHON=$$(scripts/python-venv.sh bench bench/requirements.txt); \
	  cargo bench --profile release --locked $(ARGS)

# The number of links of `sizing`.
LINKS ?= 5000
sizing: ## measure memory, CPU and disk of the daemon, and what 100,000 links would need (LINKS=5000)
	@$(cargo_env) cargo build --release --locked --bin vinculo; bench/sizing.sh '$(program)' '$(LINKS)'

docs: ## renew docs/reference from the program
	@$(cargo_env) VINCULO_DOCS=write cargo test --release --locked --test docs the_reference

lint: deny ## formatting, clippy, rustdoc and the dependency rules, warnings denied
	@cargo fmt --check
	@$(cargo_env) cargo clippy --release --locked --all-targets --features otlp -- -D warnings
	@$(cargo_env) RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --no-deps --document-private-items --features otlp

# An unoptimised build of cargo-deny: half a minute instead of six, and it has little to do.
deny:
	@scripts/system-packages.sh
	@if ! '$(cache)/tools/bin/cargo-deny' --version 2> /dev/null | grep -qFx 'cargo-deny $(deny_version)'; then \
	  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR='$(cache)/tools/target' cargo install cargo-deny \
	    --version $(deny_version) --locked --no-default-features --debug --force --quiet --root '$(cache)/tools'; \
	  rm -rf '$(cache)/tools/target'; \
	fi
	@PATH="$(cache)/tools/bin:$$PATH" cargo deny --locked check bans licenses sources

dist: cargo-deb ## tarball and .deb to ship, with DuckDB compiled in: over an hour of CPU; the last lines are their paths
	@CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)-dist' cargo build --release --locked --features 'bundled $(FEATURES)' --bin vinculo
	@CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)-dist' CARGO_DEB='$(cache)/tools/bin/cargo-deb' \
	  packaging/package.sh '$(CARGO_TARGET_DIR)-dist/release/vinculo'

disttest: cargo-deb ## make a .deb of the development build, install it in a fresh root of Debian, and remove it
	@scripts/system-packages.sh patchelf:patchelf
	@$(cargo_env) cargo build --release --locked --bin vinculo; \
	  files=$$(CARGO_DEB='$(cache)/tools/bin/cargo-deb' packaging/package.sh '$(program)'); \
	  echo "$$files"; packaging/test-deb.sh "$$(tail -n 1 <<< "$$files")"

cargo-deb:
	@scripts/system-packages.sh
	@if ! '$(cache)/tools/bin/cargo-deb' --version 2> /dev/null | grep -qFx '$(deb_version)'; then \
	  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR='$(cache)/tools/target' cargo install cargo-deb --version $(deb_version) \
	    --locked --no-default-features --features gzip --debug --force --quiet --root '$(cache)/tools'; \
	  rm -rf '$(cache)/tools/target'; \
	fi

env: ## print the exports for typing cargo yourself: eval "$(make env)"
	@scripts/cargo-env.sh

clean: ## remove what this crate built (not its dependencies, nor what was fetched)
	@cargo clean --release --package vinculo
