"""Nothing but `import torch`: what no server that needs torch before it loads can undercut."""

from __future__ import annotations

from bench.gpu.marks import Marks

if __name__ == "__main__":
    marks = Marks()
    import torch  # noqa: F401

    marks.phase("import torch")
    marks.done()
