"""Generated faces: parametric faces drawn frame by frame, in the raw layouts of data sets.

`synth` writes a tree. `action_units` defines which muscles an expression contracts, `motion` when, `identity` the
person and the scene; `geometry`, `shading`, `hair` and `face` draw the frames; `layouts` and `stills` plan the files,
`trees` and `pictures` write them; `sheet` makes a contact sheet.
"""

from shards.synthetic.trees import SynthSummary, synth

__all__ = ["SynthSummary", "synth"]
