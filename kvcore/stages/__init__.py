"""The stages of a cell, each of which turns settings and what came before into plain arguments of one part."""
