#!/usr/bin/env bash
# One run of main.py on two hosts: network namespaces of this machine, joined by a link of their own. Linux, as root.
#
#     benchmarks/two_hosts.sh shared       # both in one folder; a minute or two, on a laptop too
#     benchmarks/two_hosts.sh separate     # each has its own copy of the images and its own cache; logs and weights are shared
#     benchmarks/two_hosts.sh cut          # the link goes down in the middle of training: both must end by themselves
#
# Trains shortly on the sample set, one core a host, in a temporary folder. PYTHON names another program than `python`.
# Needs `ip` (iproute2) and `unshare`. Namespaces, processes and folder are gone in the end, and the exit status is 0 if the
# run ended as it should. What such runs showed: docs/scaling.md, "Several machines".
set -euo pipefail

mode=${1:-}
case $mode in
    shared | separate) epochs=3 ;;
    cut) epochs=500 ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; [ "$mode" = --help ] && exit; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || { echo "error: namespaces need root" >&2; exit 1; }
cd "$(dirname "$0")/.."
python=${PYTHON:-python} work=$(mktemp -d) hosts=(host1-$$ host2-$$) pids=()
logs=("$work/launch1/workerlog.0" "$work/launch2/workerlog.0")

processes() {
    for host in "${hosts[@]}"; do ip netns pids "$host" 2> /dev/null || true; done
}

kill_all() {
    kill -9 $(processes) $(jobs -rp) 2> /dev/null || true
}

clean_up() {
    exec 2> /dev/null  # bash names each process that was killed
    kill_all
    wait
    for host in "${hosts[@]}"; do ip netns del "$host" || true; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

wait_until() {  # SECONDS COMMAND: until the command is true
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

ended() {
    [ -z "$(jobs -rp)$(processes)" ]
}

learns_or_ended() {
    grep -q "epoch 2/" "${logs[0]}" 2> /dev/null || ended
}

for host in "${hosts[@]}"; do ip netns add "$host"; done
ip link add v1 netns "${hosts[0]}" type veth peer name v2 netns "${hosts[1]}"
mkdir "$work/here" "$work/shared" "$work/disk1" "$work/disk2"
if [ "$mode" = separate ]; then
    "$python" -c "import sys; from data.make_sample import make_sample; make_sample(sys.argv[1])" "$work/disk1/sample"
    cp -r "$work/disk1/sample" "$work/disk2/sample"
fi
for i in 1 2; do
    inside=(ip netns exec "${hosts[i - 1]}")
    "${inside[@]}" ip link set lo up
    "${inside[@]}" ip addr add 10.77.0.$i/24 dev v$i
    "${inside[@]}" ip link set v$i up
    if [ "$mode" = separate ]; then
        inside+=(unshare -m bash -c 'mount --bind "$0" "$1" && exec "${@:2}"' "$work/disk$i" "$work/here")
    fi
    "${inside[@]}" env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=v$i "$python" -m paddle.distributed.launch --nnodes 2 \
        --nproc_per_node 1 --master 10.77.0.1:6170 --host 10.77.0.$i --rank $((i - 1)) --log_dir "$work/launch$i" main.py \
        --sample --image_size 32 --num_folds 3 --num_epochs $epochs --patience $epochs --warmup_epochs 1 --batch_size 32 \
        --threads 1 --data_dir "$work/here/sample" --cache_dir "$work/here/cache" --log_dir "$work/shared/logs" \
        --save_dir "$work/shared/saved" > "$work/host$i.txt" 2>&1 &
    pids+=($!)
done

statuses=() problems=()
if [ "$mode" = cut ]; then
    wait_until 600 learns_or_ended || problems+=("no second epoch after 600 s")
    ip netns exec "${hosts[1]}" ip link set v2 down
    began=$SECONDS
    wait_until 180 ended || problems+=("a side still lives 180 s after the cut")
    echo "the link went down after epoch 2; $((SECONDS - began)) s later $(processes | wc -l) processes were left"
else
    wait_until 900 ended || problems+=("a side still lives after 900 s")
fi
kill_all
for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    statuses+=("$status")
done
for i in 1 2; do
    echo
    echo "host $i ended with status ${statuses[i - 1]}; the last lines of its log:"
    tail -n 8 "${logs[i - 1]}" 2> /dev/null || tail -n 20 "$work/host$i.txt"
done
echo

# What must have come out
if [ "$mode" = cut ]; then
    [[ ${statuses[0]} != 0 && ${statuses[1]} != 0 ]] || problems+=("a side ended well")
    for i in 1 2; do
        grep -Eq "^error: .*(lost another one|has ended|no heartbeat|lost the connection)" "${logs[i - 1]}" \
            || problems+=("host $i does not say that it lost the other")
    done
    [ -z "$(find "$work/shared/logs" -name report.txt)" ] || problems+=("there is a report")
else
    [ "${statuses[*]}" = "0 0" ] || problems+=("a side did not end well")
    for place in here shared disk1 disk2; do
        find "$work/$place" \( -name report.txt -o -name "*.pdparams" -o -name "*.npy" \) -printf "$place: %P\n" | sort
    done
    for what in "1 report.txt" "3 *.pdparams"; do
        [ "$(find "$work/shared" -name "${what#* }" | wc -l)" = "${what%% *}" ] || problems+=("not $what")
    done
fi
for problem in "${problems[@]}"; do echo "NOT AS IT SHOULD BE: $problem"; done
[ ${#problems[@]} = 0 ] && echo "as it should be"
