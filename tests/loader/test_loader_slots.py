"""Slots: what is held, what may be replaced, and what is still there when it is asked for again."""

from __future__ import annotations

from kdcache.loader.slots import Slots


def test_a_slot_is_held_until_its_last_position_is_passed() -> None:
    slots = Slots(2)
    assert slots.claim(7, 10) == (0, True, False)
    assert slots.claim(8, 20) == (1, True, False)
    slots.set_loaded(7)
    slots.set_loaded(8)
    assert slots.claim(9, 30) is None
    assert not slots.release(10)
    assert slots.claim(9, 30) is None
    assert slots.release(11)
    assert slots.claim(9, 30) == (0, True, False)
    assert not slots.is_loaded(7)
    assert slots.is_loaded(8)


def test_two_claims_hold_one_slot_until_both_are_passed() -> None:
    slots = Slots(1)
    assert slots.claim(7, 10) == (0, True, False)
    assert slots.claim(7, 40) == (0, False, False)
    slots.set_loaded(7)
    assert not slots.release(11)
    assert slots.release(41)


def test_a_free_slot_keeps_its_block_and_the_longest_free_goes_first() -> None:
    slots = Slots(3)
    for block in (1, 2, 3):
        slots.claim(block, block)
        slots.set_loaded(block)
    assert slots.release(3)
    assert slots.claim(1, 9) == (0, False, False)
    assert slots.is_loaded(1)
    assert slots.claim(4, 9) == (1, True, False)
    assert slots.loaded == 2


def test_a_slot_that_is_being_filled_is_not_given_away() -> None:
    slots = Slots(1)
    slots.claim(7, 10)
    slots.release_all()  # the run ended, its thread still reads
    assert slots.claim(8, 10) is None
    assert slots.claim(7, 10) == (0, False, False)
    slots.release_all()
    slots.set_loaded(7)
    assert slots.claim(8, 10) == (0, True, False)


def test_a_block_that_failed_is_forgotten() -> None:
    slots = Slots(1)
    slots.claim(7, 10)
    slots.forget(7)
    assert not slots.release(11)
    assert slots.claim(7, 10) == (0, True, False)


def test_after_an_exchange_a_block_in_its_slot_is_loaded_again_in_part() -> None:
    slots = Slots(2)
    for block in (1, 2):
        slots.claim(block, block)
        slots.set_loaded(block)
    slots.release_all()
    slots.expire()
    assert slots.loaded == 0
    assert slots.claim(2, 9) == (1, True, True)
    assert slots.claim(2, 9) == (1, False, False), "somebody is loading it already"
    assert slots.claim(3, 9) == (0, True, False), "another block is in the slot now"
    slots.set_loaded(3)
    slots.release_all()
    assert slots.claim(1, 9) == (0, True, False), "so this one holds nothing"
