# make            ./run, and what makes export.py fast
# make demo       builds, then tells a story
# make check      the tests of the kernels, two model families, the command line and sessions: a minute or two
# make test       every test (brings its own Python packages into build/venv)
# make format     brings all files into the form that .clang-format and pyproject.toml describe
# make lint       that form, and the layout of the sources: includes, lengths of files, functions and lines
# make bench      prefill and decode at growing context, and where the time goes (MODEL=file)
#                 BASE=commit: beside that commit, in turns, as ratios with their spread (BENCH=options of --bench)
# make study      MHA, GQA, MQA and MLA side by side: bytes, perplexity, speed, many texts; the files are in
#                 build/study (STUDY_TEXT=file: perplexity of a text of your own)
# make debug      build/debug/run, with ASan and UBSan
# make analyse    what cppcheck has to say: nothing
# make coverage   a table of the lines that the tests run (clang)
# make matrix     logits of every compiler, optimisation, instruction set, number of threads and cache type
#                 against tests/hashes.json (HASHES="--write '* -k q6 *'" writes the hashes of such cases anew)
# make fuzz       hostile checkpoints, sessions, tokenizers, batches and command lines (clang;
#                 FUZZ_SECONDS=60 for each; what is found stays in build/fuzz)
# make install    the program as mla, export.py as mla-export, man page and completions (PREFIX=/usr/local, DESTDIR=)
# make uninstall  removes what make install made
# make clean      removes ./run and build
#
# V=1 shows the commands. CC, CFLAGS and LDFLAGS are yours; OPENMP= builds without OpenMP; BUILD=folder and
# PROGRAM=file say where to.

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL = all
CC       ?= cc
VERSION  := $(shell cat VERSION)
BUILD     = build
PROGRAM   = run

# -O3 for the kernels' loops; no -Ofast and no contraction of a*b+c: the text must be the same everywhere. Old
# x86 (ROUNDING) keeps more digits than a float has unless told not to.
CFLAGS   ?= -O3
WARN      = -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion $(if $(OPENMP),,-Wno-unknown-pragmas)
STANDARD  = -std=gnu11 -ffp-contract=off $(ROUNDING) -fno-strict-aliasing -pthread -I. $(WARN) -DMLA_VERSION='"$(VERSION)"'

# ---- what the compiler can do -----------------------------------------------------------------------------
# $(BUILD)/compiler.mk says it: found once for each compiler and its flags, and only by goals that compile.
# OpenMP counts if a program with it also runs (on one thread: ThreadSanitizer does not understand more).
COMPILER  = $(strip $(CC) $(CFLAGS) $(LDFLAGS) $(if $(filter command,$(origin OPENMP)),OPENMP=$(OPENMP)))
COMPILES  = all install check test demo bench study matrix fuzz $(PROGRAM) $(BUILD)/%
ifneq (,$(filter $(COMPILES),$(or $(MAKECMDGOALS),all)))
-include $(BUILD)/compiler.mk
ifneq ($(PROBED),$(COMPILER))
ifeq (,$(MAKE_RESTARTS))
$(BUILD)/compiler.mk: probe-again
endif
endif
endif

$(BUILD)/compiler.mk: Makefile
	@mkdir -p $(BUILD)
	@$(CC) $(CFLAGS) -dM -E -x c /dev/null >$(BUILD)/macros 2>/dev/null || : >$(BUILD)/macros
	@echo 'int main(void) { int n = 0;' >$(BUILD)/probe.c
	@echo '_Pragma("omp parallel num_threads(1)") n += 1; return n < 1; }' >>$(BUILD)/probe.c
	@{ printf 'PROBED = %s\n' '$(COMPILER)'; \
	   if grep -q '__x86_64__' $(BUILD)/macros; then echo 'ISAS = portable avx2 avx512'; \
	     $(CC) -mavxvnni -fsyntax-only -x c /dev/null 2>/dev/null && echo 'ISAS += avxvnni'; \
	   elif grep -q '__aarch64__' $(BUILD)/macros; then echo 'ISAS = portable neon'; \
	   elif grep -q '__i386__' $(BUILD)/macros; then echo 'ISAS = portable'; echo 'ROUNDING = -msse2 -mfpmath=sse'; \
	   else echo 'ISAS = portable'; fi; \
	   if $(if $(filter command,$(origin OPENMP)),false &&) $(CC) $(CFLAGS) -fopenmp $(BUILD)/probe.c $(LDFLAGS) -o $(BUILD)/probe >/dev/null 2>&1 && \
	     $(BUILD)/probe >/dev/null 2>&1; then echo 'OPENMP = -fopenmp'; else echo 'OPENMP ='; fi; } >$@.new
	@mv $@.new $@

# ---- the program ------------------------------------------------------------------------------------------
# The kernels are compiled once for each instruction set and chosen at start.
FLAGS_portable =
FLAGS_avx2     = -mavx2 -mfma -mf16c
FLAGS_avxvnni  = $(FLAGS_avx2) -mavxvnni
FLAGS_avx512   = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512
FLAGS_neon     = -march=armv8.2-a+dotprod

KERNELS   = $(patsubst %,$(BUILD)/kernels/%.o,dispatch tune team pace) $(ISAS:%=$(BUILD)/kernels/kernels_%.o)
SOURCES   = run.c mla.c tokenizer.c kernels/linear.c $(wildcard engine/*.c) $(wildcard cli/*.c)
OBJECTS   = $(SOURCES:%.c=$(BUILD)/%.o) $(KERNELS)
PACK      = $(BUILD)/pack.so
LINK      = $(CC) $(CFLAGS) $(OPENMP) $(LDFLAGS) -pthread -o $@
COMPILE   = $(CC) $(CFLAGS) $(OPENMP) $(STANDARD) -MMD -MP -c -o $@ $<
Q         = $(if $(filter 1,$(V)),,@)
SAY       = $(if $(filter 1,$(V)),@:,@printf '%-8s %s\n')

all: $(PROGRAM) $(PACK)

$(PROGRAM): $(OBJECTS)
	$(SAY) link $@
	$(Q)$(LINK) $^ -lm
	$(if $(OPENMP),,@echo "$@ is built without OpenMP and has one thread: $(CC) has none that runs, or OPENMP= was given")

$(BUILD)/%.o: %.c $(BUILD)/compiler.mk
	@mkdir -p $(@D)
	$(SAY) compile $<
	$(Q)$(COMPILE) -DISAS='"$(ISAS)"'

$(BUILD)/kernels/kernels_%.o: kernels/kernels.c $(BUILD)/compiler.mk
	@mkdir -p $(@D)
	$(SAY) compile "$< for $*"
	$(Q)$(COMPILE) $(FLAGS_$*) -DISA_$*

# For export.py, which does without where this cannot be made.
$(PACK): kernels/pack.c $(BUILD)/compiler.mk
	$(SAY) compile $@
	$(Q)$(CC) $(CFLAGS) $(STANDARD) -DISA_portable -fPIC -shared -MMD -MP -MF $(BUILD)/pack.d -o $@ $< || \
		echo "export.py packs with numpy alone, several times slower: $(CC) makes no shared library"

$(BUILD)/cli/options.o $(BUILD)/cli/manual.o: VERSION

-include $(OBJECTS:.o=.d) $(BUILD)/pack.d $(wildcard $(BUILD)/tests/*.d $(BUILD)/tests/fuzz/*.d)

# ---- installation -----------------------------------------------------------------------------------------
PREFIX    = /usr/local
install: $(PROGRAM) $(PACK)
	$(Q)PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" cli/install.sh install "$(DIRECT)$(PROGRAM)" "$(PACK)"
	$(SAY) install "$(DESTDIR)$(PREFIX)/bin/mla"

uninstall:
	$(Q)PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" cli/install.sh uninstall

# ---- tests ------------------------------------------------------------------------------------------------
# The parts alone: programs that print a line `ok NAME` or `FAIL NAME` for each case, and drivers behind a pipe.
C_TESTS   = $(BUILD)/test_kernels $(BUILD)/test_attention $(BUILD)/test_team
DRIVERS   = $(patsubst %,$(BUILD)/%_driver,tokenizer rope logprob sampler json sequences session system hyper)
TESTS     = $(C_TESTS) $(DRIVERS)
LINK_TEST = $(Q)$(LINK) $^ -lm

$(C_TESTS): $(BUILD)/%: $(BUILD)/tests/%.o $(KERNELS)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/tokenizer_driver: $(BUILD)/tests/tokenizer_driver.o $(BUILD)/tokenizer.o \
		$(patsubst %,$(BUILD)/engine/%.o,section pretokenizer unicode)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/rope_driver: $(BUILD)/tests/rope_driver.o $(BUILD)/engine/rope.o
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/logprob_driver: $(BUILD)/tests/logprob_driver.o $(BUILD)/engine/logprob.o $(KERNELS)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/json_driver: $(BUILD)/tests/json_driver.o $(patsubst %,$(BUILD)/%.o,cli/json cli/slice engine/unicode)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/sampler_driver: $(BUILD)/tests/sampler_driver.o $(BUILD)/engine/sampler.o $(KERNELS)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/system_driver: $(BUILD)/tests/system_driver.o $(BUILD)/cli/system.o $(KERNELS)
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/hyper_driver: $(BUILD)/tests/hyper_driver.o $(filter $(BUILD)/engine/%,$(OBJECTS)) $(KERNELS) $(BUILD)/kernels/linear.o
	$(SAY) link $@
	$(LINK_TEST)
$(BUILD)/sequences_driver $(BUILD)/session_driver: $(BUILD)/%: $(BUILD)/tests/%.o \
		$(filter-out $(BUILD)/run.o,$(OBJECTS))
	$(SAY) link $@
	$(LINK_TEST)

check: $(PROGRAM) $(PACK) $(TESTS)
	@tests/check.sh

test: $(PROGRAM) $(PACK) $(TESTS) build/venv/requirements.txt
	@tests/run_tests.sh

# Here, and not only in run_tests.sh: with -j the packages are installed while the compiler works.
build/venv/requirements.txt: tests/requirements.txt
	@tests/venv.sh

# Each kind of files that the tests look at is found by git: what it does not know is not ours.
format:
	git ls-files -z '*.c' '*.h' | xargs -0 clang-format -i
	git ls-files -z '*.py' | xargs -0 ruff format --quiet

lint:
	@tests/check.sh tests/test_layout.py

MODEL     = demo/stories.bin
bench: $(PROGRAM)
	$(if $(BASE),python3 tests/bench.py $(BASE) $(DIRECT)$(PROGRAM) $(MODEL),$(DIRECT)$(PROGRAM) $(MODEL) --bench --profile) $(BENCH)

REQUEST   = Tell me a story about a dog and a red ball.
demo: $(PROGRAM)
	@echo "> $(REQUEST)"
	@$(DIRECT)$(PROGRAM) demo/stories.bin --chat -p "$(REQUEST)" -s 140

# a program in this folder is called with ./
DIRECT    = $(if $(findstring /,$(PROGRAM)),,./)

# export.py needs numpy, which the tests' Python has
PYTHON    = $(firstword $(wildcard build/venv/bin/python) python3)
study: $(PROGRAM)
	$(PYTHON) tests/study.py $(if $(STUDY_TEXT),"$(STUDY_TEXT)")

# -g1: line numbers are what a sanitizer reports; tracking variables through the kernels takes gcc a minute.
debug:
	$(MAKE) BUILD=build/debug PROGRAM=build/debug/run $(or $(GOAL),build/debug/run) \
		CFLAGS="-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined"

# Kernels in plain C: the sanitizers see all of it. main of run.c under another name: libFuzzer brings its own.
# What runs too long or takes too much memory is a finding as well.
FUZZ_SECONDS = 60
FUZZ_TARGETS = options tokenizer session checkpoint batch
FUZZ_FLAGS   = -max_total_time=$(FUZZ_SECONDS) -timeout=100 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
	-max_len=524288 -len_control=0 -close_fd_mask=3 -print_final_stats=1
fuzz: $(PROGRAM)
	tests/venv.sh
	$(MAKE) BUILD=build/fuzz CC=clang OPENMP= ISAS=portable LDFLAGS=-fsanitize=fuzzer \
		CFLAGS="-O1 -g1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -Dmain=run_main" \
		$(FUZZ_TARGETS:%=build/fuzz/fuzz_%)
	rm -rf build/fuzz/seeds && build/venv/bin/python tests/fuzz/make_seeds.py build/fuzz/seeds
	for target in $(FUZZ_TARGETS); do mkdir -p build/fuzz/corpus/$$target; \
		MLA_FUZZ_MODEL=build/fuzz/seeds/model.bin build/fuzz/fuzz_$$target $(FUZZ_FLAGS) \
		-artifact_prefix=build/fuzz/$$target- build/fuzz/corpus/$$target build/fuzz/seeds/$$target || exit 1; done

$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/fuzz.o $(OBJECTS)
	$(SAY) link $@
	$(Q)$(LINK) $^ -lm

analyse:
	cppcheck --quiet --enable=warning,portability,performance --error-exitcode=1 --inline-suppr --std=c11 \
		--suppress=missingIncludeSystem -I. -DISA_portable -DISAS='"portable"' -DMLA_VERSION='""' \
		*.c engine/*.c cli/*.c kernels/*.c

matrix: $(PROGRAM)
	tests/venv.sh
	build/venv/bin/python tests/matrix.py $(HASHES)

# The tests run the program and the kernels' tests that are built here; what ends by a signal or _exit leaves no
# counts, and of the faults in tests/test_faults.py some meet clang's OpenMP and profile libraries, which abort:
# those tests fail here.
COVERED   = build/coverage
coverage:
	$(MAKE) BUILD=$(COVERED) PROGRAM=$(COVERED)/run CC=clang CFLAGS="-O1 -fprofile-instr-generate -fcoverage-mapping" \
		$(COVERED)/run $(TESTS:$(BUILD)/%=$(COVERED)/%)
	rm -f $(COVERED)/*.profraw
	-MLA_BUILD=$(COVERED) LLVM_PROFILE_FILE=$(CURDIR)/$(COVERED)/%8m.profraw tests/run_tests.sh \
		--deselect tests/test_fuzz.py::test_fuzz
	llvm-profdata merge -o $(COVERED)/profile $(COVERED)/*.profraw
	llvm-cov report $(COVERED)/run $(TESTS:$(BUILD)/%=-object $(COVERED)/%) -instr-profile=$(COVERED)/profile \
		-show-region-summary=false -show-branch-summary=false -ignore-filename-regex=tests/

clean:
	rm -rf run build mla_export.egg-info

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

.PHONY: all install uninstall demo check test format lint bench study debug fuzz analyse matrix coverage clean help probe-again
