"""`kill -9` at random moments of a run with evaluation, averaged weights and checkpoints costs nothing but time.

Each attempt is forked from a process that has imported everything, so that a start takes a second instead of six.
"""

import random
import re
import time

from tiny_training import TINY_MODEL, differences, fork, metrics, newest_state, newest_step, write_recipe

from sap_detr_hf.demo.digits import make_digits

KILLS = 20
STEPS_OF_AN_ATTEMPT = 4  # at most: so that the run is not over before the last kill


def test_killed_at_random_moments_equals_uninterrupted(tmp_path):
    make_digits(tmp_path / "digits", 10, 2, (64, 64))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(tmp_path / "digits"),
        cache_dir=str(tmp_path / "cache"),
        model_overrides={**TINY_MODEL, "dropout": 0.1},
        augmentation="flip",
        epochs=KILLS * STEPS_OF_AN_ATTEMPT // 3 + 3,  # 3 steps each
        ema_decay=0.9,
        evaluation_epochs=1,
        checkpoint_steps=1,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    began = time.monotonic()
    uninterrupted = fork(tmp_path / "whole.log", recipe, "--output_dir", whole)
    while newest_step(whole) == 0 and uninterrupted.is_alive():
        time.sleep(0.01)
    start_up = time.monotonic() - began
    draw = random.Random(13)
    resumed = 0
    for number in range(KILLS + 1):
        before = newest_step(parts)
        log = tmp_path / f"{number}.log"
        attempt = fork(log, recipe, "--output_dir", parts, "--resume", "auto")
        if number < KILLS:
            reach = 1.5 * start_up  # also in the start, reading a state
            if number % 2:  # every other time after a step of its own: while it writes, evaluates, takes the next ones
                while newest_step(parts) == before and attempt.is_alive():
                    time.sleep(0.002)
                reach = 0.5 * start_up
            moment = time.monotonic() + draw.uniform(0, reach)
            while time.monotonic() < moment and newest_step(parts) < before + STEPS_OF_AN_ATTEMPT:
                time.sleep(0.002)
            attempt.kill()
        attempt.join(120)
        assert attempt.exitcode == (-9 if number < KILLS else 0), log.read_text()
        read = re.findall(r"Go on after step (\d+)", log.read_text() if log.exists() else "")
        assert read in ([], [str(before)])
        resumed += len(read)
    assert read  # the last attempt, which was not killed, went on as well
    assert resumed > KILLS / 4
    uninterrupted.join(120)
    assert uninterrupted.exitcode == 0
    assert metrics(parts) == metrics(whole)
    states = [newest_state(folder) for folder in (whole, parts)]
    for state in states:
        state["progress"].pop("metrics_bytes")  # differs with the clock's numbers
    assert differences(*states) == []
    for name in ("model.safetensors", "last/model.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
