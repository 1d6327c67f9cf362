"""Scores of answers written anew, character by character, as the evaluations of SQuAD, HotpotQA and
FlashRAG define them. Nothing here is a regular expression or shared with the package."""

import string


def words_of(text):
    """Lower-case; without ASCII punctuation; without a, an, the where they stand alone between
    characters that are neither letters nor digits; split at white space."""
    kept = [character for character in text.lower() if character not in string.punctuation]
    pieces, piece = [], ""
    for character in kept:
        if character.isalnum():
            piece += character
        else:
            pieces += [piece, character]
            piece = ""
    pieces.append(piece)
    return "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces).split()


def exact(prediction, golden):
    return prediction is not None and any(words_of(prediction) == words_of(g) for g in golden)


def cover(prediction, golden):
    if prediction is None:
        return False
    said = " ".join(words_of(prediction))
    found = False
    for answer in golden:
        wanted = " ".join(words_of(answer))
        if wanted:
            found |= any(said[start:].startswith(wanted) for start in range(len(said)))
        else:  # our own rule: what normalises to nothing is found in nothing but nothing
            found |= not said
    return found


def f1(prediction, golden):
    """By crossing out matched words one at a time; the best of all golden answers."""
    if prediction is None:
        return 0.0
    best = 0.0
    for answer in golden:
        said, wanted = words_of(prediction), words_of(answer)
        closed = (["yes"], ["no"], ["noanswer"])
        if said != wanted and (said in closed or wanted in closed):
            continue
        left, common = list(wanted), 0
        for word in said:
            if word in left:
                left.remove(word)
                common += 1
        if common:
            precision, recall = common / len(said), common / len(wanted)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best
