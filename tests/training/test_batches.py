"""Which image comes when: every image once an epoch, whatever the number of processes, reproducible from any step."""

import numpy as np
import pytest
import torch

from sap_detr_hf.training.batches import ProcessBatchSampler, epoch_batches

SIZES = {"images_per_device": 3, "group_size": 3, "seed": 5}


def test_every_image_comes_once_and_the_last_step_is_filled_up():
    batches = epoch_batches(20, epoch=0, batches_per_step=2, **SIZES)
    assert batches.shape == (4, 2, 3)
    assert sorted(batches.flatten()[:20].tolist()) == list(range(20))
    assert batches.flatten()[20:].tolist() == batches.flatten()[:4].tolist()
    dropped = epoch_batches(20, epoch=0, batches_per_step=2, drop_last=True, **SIZES)
    assert torch.equal(dropped, batches[:3])
    few = epoch_batches(2, epoch=0, batches_per_step=2, **SIZES)
    assert few.shape == (1, 2, 3)
    assert set(few.flatten().tolist()) == {0, 1}


def test_order_depends_on_seed_and_epoch_alone():
    first = epoch_batches(50, epoch=3, batches_per_step=2, **SIZES)
    torch.rand(1)
    assert torch.equal(first, epoch_batches(50, epoch=3, batches_per_step=2, **SIZES))
    assert not torch.equal(first, epoch_batches(50, epoch=4, batches_per_step=2, **SIZES))
    other_seed = {**SIZES, "seed": 6}
    assert not torch.equal(first, epoch_batches(50, epoch=3, batches_per_step=2, **other_seed))


def test_grouped_batches_hold_one_orientation_but_for_the_left_over():
    wide = np.arange(50) % 3 > 0
    batches = epoch_batches(50, epoch=1, batches_per_step=2, wide=wide, **SIZES)
    assert sorted(batches.flatten()[:50].tolist()) == list(range(50))
    mixed = [batch for batch in batches.flatten(0, 1)[:16] if 0 < wide[batch].sum() < 3]
    assert len(mixed) <= 1
    orientations = [bool(wide[batch[0]]) for batch in batches.flatten(0, 1)[:15]]
    assert orientations != sorted(orientations)  # shuffled, not one orientation after the other
    assert orientations != sorted(orientations, reverse=True)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("wide", [None, np.arange(21) % 2 == 0])
def test_a_step_has_the_same_batches_on_any_number_of_processes(processes, wide):
    expected = epoch_batches(21, epoch=2, batches_per_step=4, wide=wide, **SIZES)
    samplers = [ProcessBatchSampler(21, 4 // processes, p, processes, wide=wide, **SIZES) for p in range(processes)]
    for sampler in samplers:
        sampler.start(2, 1)
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}  # none waits for another
    for step in range(1, samplers[0].steps_per_epoch):
        found = [b for share in shares for b in share[(step - 1) * 4 // processes : step * 4 // processes]]
        assert sorted(map(tuple, found)) == sorted(map(tuple, expected[step].tolist()))


def test_too_few_images_for_a_whole_step():
    with pytest.raises(ValueError, match="5 training images are fewer than one effective batch of 6"):
        ProcessBatchSampler(5, 2, 0, 1, drop_last=True, **SIZES)
