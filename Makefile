# The front door. `make demo` and `make test` need nothing else typed on a fresh Debian machine with git, make and Go.
# Every target that needs programs calls `setup` first; it is quick when all is there.

# CI may start us with an empty environment. HOME decides where Go keeps its caches and its proxy settings.
ifeq ($(strip $(HOME)),)
HOME := $(shell getent passwd "$$(id -u)" | cut -d: -f6)
endif
export HOME
export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export CGO_ENABLED := 0

.PHONY: all setup build test short lint fuzz bench demo clean

all: build

setup: ## install what tests, demo and bench need (apt, npm, Maven, Go modules); repeatable
	scripts/setup

build: ## bin/holdfast, static
	scripts/test build

test: setup ## every check and every test, then the fuzz targets
	scripts/test

short: ## tests that need no server and no network
	scripts/test short

lint: ## gofmt, go vet, staticcheck
	scripts/test format vet staticcheck

fuzz: ## every fuzz target for a short while
	scripts/test fuzz

bench: setup build ## side by side with pgbackrest; BENCH="--quick" for a small one
	scripts/bench $(BENCH)

demo: setup build ## the whole story: back up, lose, restore, prove
	scripts/demo

clean:
	rm -rf bin
