"""Where prompts are cut for the checkpoints of other servers, from tokens alone."""

from kvlab.decoder.prefill.message_ends import cut_at_counts, message_ends, slot_checkpoints

END = 2


def prompt(length: int, *ends: int) -> list[int]:
    tokens = [5] * length
    for at in ends:
        tokens[at - 1] = END
    return tokens


def test_messages_end_behind_their_last_token():
    assert message_ends(prompt(100, 30, 60, 100), {END}) == [30, 60], "the last token of all starts nothing"


def test_two_checkpoints_lie_a_batch_apart_before_the_end():
    """Seen on llama-server with a window of 512 and 1400 tokens: checkpoints at 884 and 1396."""
    assert slot_checkpoints(prompt(1400), 0, {END}, spacing=8192, ubatch=512) == [884, 1396]
    assert slot_checkpoints(prompt(300), 0, {END}, spacing=8192, ubatch=512) == [296]
    assert slot_checkpoints(prompt(4), 0, {END}, spacing=8192, ubatch=512) == []


def test_the_last_message_and_those_far_apart_have_a_checkpoint_before():
    ends = (100, 5000, 9000, 9100, 18000, 18500)
    assert slot_checkpoints(prompt(19000, *ends), 0, {END}, spacing=8192, ubatch=512) == [
        9000,
        18000,
        18484,
        18996,
    ]
    assert slot_checkpoints(prompt(19000, *ends), 9000, {END}, spacing=8192, ubatch=512, before=9000) == [
        18000,
        18484,
        18996,
    ]


def test_a_prompt_is_cut_at_the_counts_behind_its_start():
    tokens = list(range(10))
    assert cut_at_counts(tokens, 2, [0, 2, 4, 7, 10, 12]) == [[2, 3], [4, 5, 6], [7, 8, 9]]
    assert cut_at_counts(tokens, 0, []) == [tokens]
