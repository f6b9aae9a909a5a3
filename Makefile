# `make demo` and `make test` each work on a fresh Debian or Ubuntu machine.
#
#   make setup   missing system packages, a virtual environment, all dependencies and tools
#   make demo    set up without development tools, then run the whole path on real images
#   make test    setup, then the tests on all cores   (PYTEST_ARGS="-k kernels" picks some)
#   make lint    setup, then ruff and mypy
#   make fuzz    setup, then damaged files of every kind      (QUICK=1: two minutes)
#   make chaos   setup, then kills, disk and memory faults    (QUICK=1: three minutes)
#   make soak    setup, then 200 epochs that must not leak    (QUICK=1: a minute)
#   make clean   remove .venv and the files of builds and tools, but not runs/
#
# VENV=DIR puts the environment elsewhere; PYTHON=python3.12 chooses the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: setup demo test lint fuzz chaos soak clean

VENV ?= .venv
PYTHON ?= python3.13 python3.12 python3.11 python3
PYTEST_ARGS ?=
QUICK ?=
RUNTIME := $(VENV)/.installed
STAMP := $(VENV)/.installed-dev

setup: $(STAMP)

demo: $(RUNTIME)
	@"$(VENV)/bin/python" -m train.demo

test: $(STAMP)
	@export GOMP_SPINCOUNT=10000 # OpenMP's threads wait with less of the processor
	"$(VENV)/bin/python" -m pytest -n auto --dist loadfile --durations=15 $(PYTEST_ARGS)

lint: $(STAMP)
	@set -x
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .
	"$(VENV)/bin/python" -m mypy --strict dp4tl_ffcv writers train

fuzz chaos soak: $(STAMP)
	@for name in $@ $(if $(filter chaos,$@),concurrency); do
	    "$(VENV)/bin/python" -m tests.campaigns.$$name $(if $(QUICK),--quick)
	done

clean:
	@rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# apt-get installs only the packages that are missing.
define INSTALL
python_that() { # print the first of PYTHON that can run the code $$1
    for name in $(PYTHON); do
        if "$$name" -c "$$1" 2>/dev/null; then command -v "$$name"; return; fi
    done
}
suits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
complete="import ensurepip, os, sysconfig
os.stat(os.path.join(sysconfig.get_path('include'), 'Python.h')); $$suits"

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v pkg-config >/dev/null || missing+=(pkg-config)
pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
if [ -z "$$(python_that "$$complete")" ]; then
    found=$$(readlink -f "$$(python_that "$$suits")" || true)
    case "$$found" in
        /usr/bin/python3.*) missing+=("$${found##*/}-venv" "$${found##*/}-dev") ;;
        *) missing+=(python3 python3-venv python3-dev) ;;
    esac
fi

if [ $${#missing[@]} -gt 0 ]; then
    root=()
    [ "$$(id -u)" = 0 ] || root=(sudo)
    if ! command -v apt-get >/dev/null || ! command -v "$${root[0]:-env}" >/dev/null; then
        echo "make setup: these Debian packages are missing: $${missing[*]}." >&2
        echo "Install them (or what your system calls them) as root and run make setup again." >&2
        exit 1
    fi
    echo "make setup: installing $${missing[*]}"
    "$${root[@]}" apt-get update
    "$${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$${missing[@]}"
fi

python=$$(python_that "$$complete")
if [ -z "$$python" ]; then
    echo "make setup: Python 3.11, 3.12 or 3.13 with venv and Python.h is needed;" \
        "none found as: $(PYTHON)." >&2
    echo "Install one and run make setup PYTHON=/path/to/python." >&2
    exit 1
fi
"$$python" -m venv "$(VENV)"
"$(VENV)/bin/python" -m pip install -e . -c constraints.txt
touch "$(RUNTIME)"
endef

$(RUNTIME): pyproject.toml constraints.txt
	@$(INSTALL)

$(STAMP): $(RUNTIME)
	@"$(VENV)/bin/python" -m pip install -e '.[dev,writers,clustering,moco,timm,fuzz,ray,slurm]' -c constraints.txt
	touch "$(STAMP)"
