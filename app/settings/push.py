"""The flag that `coldstream push` has beside those of the source.

Knows no other source: this is no setting of a server.
"""

from app.settings.bench import Option
from app.settings.kinds import TEXT

OPTIONS = {
    "--revision": Option(
        TEXT, "", "Branch, tag or commit of a repository of the Hugging Face hub; without it its main branch."
    )
}
HELP = "\n".join(
    (
        "upload a checkpoint to a container: a local folder, or a repository of the Hugging Face hub",
        "",
        "SRC is a folder, else, where nothing here is named so, a repository `org/name`. `hf://org/name` and",
        "`hf://org/name@revision` are always the repository. It is read at one commit and never lies on disk; of gated and private",
        "ones with HF_TOKEN, or as `hf auth login` left it. What is there unchanged is skipped; push again what was cut off.",
        "Exit code 0, 3 (source or container), 4 (no checkpoint that could be served, or bytes that are not the hub's), 2 is usage.",
    )
)
