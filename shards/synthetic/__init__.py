"""Generated faces: parametric faces drawn frame by frame, in the raw layouts of DFEW, FERV39k and MAFW.

`synth` writes a tree. `action_units` defines which muscles an expression contracts, `motion` when, `identity` the
person and the scene; `geometry`, `shading`, `hair` and `face` draw the frames; `layouts` and `trees` write the files;
`sheet` makes a contact sheet.
"""

from shards.synthetic.trees import SynthSummary, synth

__all__ = ["SynthSummary", "synth"]
