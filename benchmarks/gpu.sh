#!/bin/bash
# A bare machine with a GPU, torch and transformers, lent for minutes: what is worth measuring there, in a few calls.
#
#   gpu.sh install CARGO       CARGO/wheels (what the machine lacks), CARGO/*.tar.xz (models and data, unpacked into $WORK)
#   gpu.sh try PLAN MINUTES    the search on a few steps and rows, so that it does not fail for a silly reason
#   gpu.sh tests SECONDS       GPU-marked tests, and the rooms of the test suite that touch a device
#   gpu.sh measure             benchmarks of docs/results/benchmarks
#   gpu.sh tofu [SECONDS]      costs at 1 B and 7 B with CUDA graphs, then methods on a Llama of 100 M that knows TOFU (gpu.py)
#   gpu.sh smollm2 [SECONDS]   methods on SmolLM2 with TOFU-60 (gpu.py)
#   gpu.sh search MINUTES PLAN:JOBS …   search.py on plans of this folder, side by side; what comes of it as $OUT/PLAN.tar.xz
#
# `python benchmarks/gpu.py pack tofu` (or smollm2) makes the CARGO of the two in build/gpu, in parts small enough to travel; several are
# installed in a call each. Behind SECONDS, --dry makes two steps of everything with tiny models, also without a GPU.
# $WORK: where everything is kept; $OUT: what is to come back.
set -u
cd "$(dirname "$0")/.."
WORK=${WORK:-build/gpu/work} OUT=${OUT:-build/gpu/out}
mkdir -p "$WORK/data" "$WORK/models" "$OUT"
WORK=$(realpath "$WORK") OUT=$(realpath "$OUT")
export PYTHONPATH=$PWD/src:$WORK/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1 ULD_DATA_DIR=$WORK/data ULD_MODELS_DIR=$WORK/models

search() { # PLAN JOBS MINUTES …
    local plan=$1 jobs=$2 minutes=$3
    shift 3
    python3 benchmarks/search.py "benchmarks/plans/$plan.yaml" --models "$WORK/models" --data "$WORK/data" \
        --work "$WORK/${RUNS:-search}/$plan" --jobs "$jobs" --minutes "$minutes" "$@" >"$OUT/$plan.log" 2>&1
}

case $1 in
install)
    [ ! -d "$2/wheels" ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" "$2"/wheels/*.whl
    for pack in "$2"/*.tar.xz; do [ -f "$pack" ] && tar xf "$pack" -C "$WORK"; done
    ;;
try)
    mkdir -p "$WORK/few" && cp -r "$WORK/search/$2" "$WORK/few" 2>/dev/null
    RUNS=few search "$2" 3 "$3" --few
    tail -15 "$OUT/$2.log"
    ;;
measure)
    for script in decode rule "training --model 370m"; do
        set -- $script
        timeout 100 python3 "benchmarks/$1.py" "${@:2}" || echo "$script: $?"
    done
    cp docs/results/benchmarks/*-gpu.json "$OUT"
    ;;
tests)
    timeout 40 python3 -m pytest -q -m gpu -rs tests/training/test_objective.py -p no:cacheprovider
    timeout "${2:-90}" python3 -m pytest -q -n 10 --timeout 60 -p no:cacheprovider tests/model tests/training tests/cli tests/evaluation 2>&1 |
        tail -80
    ;;
tofu | smollm2)
    python3 benchmarks/gpu.py "$1" --work "$WORK" --out "$OUT" --seconds "${2:-500}" "${@:3}"
    ;;
search)
    minutes=$2
    shift 2
    for one in "$@"; do search "${one%:*}" "${one#*:}" "$minutes" & done
    wait
    for one in "$@"; do
        plan=${one%:*}
        cd "$WORK/search" # rows of an evaluation stand in its log as well; weights come back for the first run only
        find "$plan" -name checkpoints -prune -o -type f -print0 | grep -zv '/tokenizer\|/adapter/\|/eval/.*\.jsonl' |
            tar cf - --null -T - | xz -1 -T8 >"$OUT/$plan.tar.xz"
        tar cf - --exclude checkpoints $(ls -d "$plan"/runs/*seed?0) | xz -1 -T8 | split -b 15M - "$OUT/$plan-runs.tar.xz."
        cd - >/dev/null
        tail -40 "$OUT/$plan.log"
    done
    ;;
esac
