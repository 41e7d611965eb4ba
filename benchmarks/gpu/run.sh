#!/usr/bin/env bash
# Measures the library on one NVIDIA GPU, in 8 minutes at most and without network.
#
#     benchmarks/gpu/run.sh [--quick] [--applications] [WHEELS_FOLDER]
#
# With `--applications` it trains the examples of films, generators and scenes at the sizes of a GPU, and otherwise
# measures speed and small problems.
#
# The machine needs Python 3.12 and JAX with CUDA. What else is missing is installed from WHEELS_FOLDER, which another
# machine fills; add `--no-deps` and names of further packages if only those are missing:
#
#     pip download --only-binary=:all: --python-version 3.12 --dest wheels -r benchmarks/gpu/requirements.txt \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64
#
# Figures go to `figures.jsonl` and `figures.md` in the folder OUT (./gpu-results) one by one, as soon as they are known,
# with pictures and `log.txt` beside them; what an earlier run left there is replaced. Every part has a time limit, to
# which is added what those before it have left of theirs; one that fails is reported, and the next one runs.
# PYTHON names the interpreter. With `--quick` sizes are tiny and no GPU is needed.
set -uo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
OUT="${OUT:-gpu-results}"
quick=() scale=1 applications=0 wheels="" deadline=0 failed=0 child=""
for argument in "$@"; do
    case "$argument" in
    --quick) quick=(--quick) scale=5 ;;
    --applications) applications=1 ;;
    -*)
        echo "run.sh: unknown option $argument" >&2
        exit 2
        ;;
    *) wheels="$argument" ;;
    esac
done

mkdir -p "$OUT" || exit
OUT="$(cd "$OUT" && pwd)" || exit
scratch="$(mktemp -d)" || exit
mkdir "$scratch/site" || exit
trap 'rm -rf "$scratch"' EXIT
trap '[ -n "$child" ] && kill "$child" 2>/dev/null; exit 143' INT TERM
export OUT
export PYTHONPATH="$scratch/site:$root:$root/benchmarks:$root/examples${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$scratch/programs}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
: >"$OUT/figures.jsonl"
printf '| part | figure | value | unit | note |\n| --- | --- | ---: | --- | --- |\n' >"$OUT/figures.md"
exec > >(tee "$OUT/log.txt") 2>&1

# limited NAME SECONDS COMMAND...: runs a command within its time, and records what went wrong.
limited() {
    local name="$1" seconds="$2" status note
    shift 2
    deadline=$((deadline + scale * seconds))
    echo "== $name, at most $((deadline - SECONDS)) s"
    timeout -k 5 "$((deadline - SECONDS))" "$@" &
    child=$!
    wait "$child"
    status=$?
    child=""
    [ "$status" -eq 0 ] && return 0
    note="exit status $status"
    case "$status" in 124 | 137) note="time limit" ;; esac
    printf '{"part": "%s", "figure": "failed", "value": %d, "unit": "", "note": "%s"}\n' "$name" "$status" "$note" \
        >>"$OUT/figures.jsonl"
    printf '| %s | failed | %d | | %s |\n' "$name" "$status" "$note" >>"$OUT/figures.md"
    echo "== $name failed: $note"
    return 1
}

# part NAME SECONDS MODULE OPTION...: runs one of the modules beside this script.
part() {
    local name="$1" seconds="$2" module="$3"
    shift 3
    limited "$name" "$seconds" "$python" "$here/$module.py" "${quick[@]}" "$@" || failed=1
}

pip=("$python" -m pip install --quiet --disable-pip-version-check --no-index)
if [ -n "$wheels" ]; then
    unpacked=()
    for wheel in "$wheels"/*.whl; do
        # The machine's own are built for its GPU.
        case "${wheel##*/}" in jax-* | jaxlib-*) ;; *) unpacked+=("$wheel") ;; esac
    done
    limited install 25 "${pip[@]}" --find-links "$wheels" -r "$here/requirements.txt" ||
        limited unpack 10 "${pip[@]}" --no-deps --target "$scratch/site" "${unpacked[@]}" || failed=1
fi
# The library asks for its own version, which a folder of sources does not tell.
if ! "$python" -c 'import importlib.metadata as m; m.version("stochinv")' 2>/dev/null; then
    mkdir "$scratch/site/stochinv-0.dist-info"
    version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")"
    printf 'Metadata-Version: 2.1\nName: stochinv\nVersion: %s\n' "$version" >"$scratch/site/stochinv-0.dist-info/METADATA"
fi

part "device" 30 device
if ((applications)); then
    part "scenes" 210 applications --problem scenes
    part "motion" 120 applications --problem motion
    part "generators" 95 applications --problem generators
else
    part "transformer, float32" 65 transformer --precision float32
    part "transformer, bf16" 45 transformer --precision bf16
    part "transformer, in 4 parts" 50 transformer --accumulate 4
    part "rays" 20 rays
    part "unet" 50 unet
    part "quickstart, float32" 70 learned --problem quickstart --precision float32
    part "quickstart, bf16" 50 learned --problem quickstart --precision bf16
    part "jumps" 60 learned --problem jumps
fi
echo "== finished after $SECONDS s: $OUT/figures.md"
exit "$failed"
