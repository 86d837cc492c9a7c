"""How methods are written; imports nothing, so that the command line starts without torch."""

JOINT = "+"  # between the methods of a composition: "superpos+multi-mask"
