#!/bin/bash
# Several nodes under SLURM. Before its time limit the job saves its state, and goes on when SLURM starts it again:
#   sbatch --nodes 2 --gpus-per-node 4 slurm.sh RECIPE --output_dir SHARED_FOLDER [--setting value ...]
# A run that fails by itself (exit code above 0) is not started again.
#SBATCH --job-name=sap_detr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180

address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((29500 + SLURM_JOB_ID % 1000))
processes=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))

# Each node's task has a number of its own, which only its own shell knows.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" \
    --num_processes '"$processes"' --machine_rank "$SLURM_NODEID" --main_process_ip '"$address"' \
    --main_process_port '"$port"' "$@"' task -m sap_detr_cli train "$@" --resume auto &
step=$!

stopped=0
trap 'stopped=1; kill -TERM "$step"' TERM
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # the signal ended `wait`, while the run saves its state
    wait "$step"
    code=$?
done
if [ "$stopped" = 1 ]; then
    echo "Stopped by SLURM: job $SLURM_JOB_ID goes on from its newest checkpoint when it is started again."
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
