"""Generated faces: parametric faces drawn frame by frame, in the raw layouts of DFEW, FERV39k and MAFW.

`synth` writes a tree. `action_units` says what an expression contracts, `motion` when, `identity` who is seen and
where, `geometry`, `shading`, `hair` and `face` draw it, `layouts` and `trees` lay the files out, `sheet` makes a
contact sheet to look at.
"""

from shards.synthetic.trees import SynthSummary, synth

__all__ = ["SynthSummary", "synth"]
