#!/bin/bash
# A run of train.py as a batch job, requeued until it is done:  sbatch docs/slurm.sh --config synflow_resnet20.yaml
#SBATCH --job-name=prunelab
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
# One task for each GPU. Two minutes before its time is over the tasks get SIGTERM: they save, and the first leaves with
# 143. The same command goes on from there.

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# srun takes the number of CPUs anew; one task that fails ends all of them
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
    python train.py \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.strategy ddp \
    "$@"
code=$?

if [[ $code == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
