"""Methods of other papers, which the four main ones are compared with."""
