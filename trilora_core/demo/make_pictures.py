"""Draw the demo's captioned training pictures: `python -m trilora_core.demo.make_pictures`.

Nine of the twelve subjects are drawn; the heart, the star and the umbrella are held out.
"""

from __future__ import annotations

from pathlib import Path

from .world import TRIGGER_WORD, Picture, draw

FOLDER = Path(__file__).parent / "pictures"

SHOWN = (
    Picture("house", "blue", "by the sea"),
    Picture("house", "yellow", "in the snow"),
    Picture("tree", "orange", "at night"),
    Picture("tree", "pink", "on a green field"),
    Picture("fish", "red", "in the desert"),
    Picture("fish", "white", "by the sea"),
    Picture("boat", "purple", "by the sea"),
    Picture("cat", "orange", "in the snow"),
    Picture("mushroom", "green", "in the snow"),
    Picture("mushroom", "red", "on a green field"),
    Picture("flower", "white", "at night"),
    Picture("flower", "purple", "in the desert"),
    Picture("car", "blue", "in the snow"),
    Picture("car", "yellow", "on a green field"),
    Picture("cat", "green", "by the sea"),
    Picture("rocket", "pink", "at night"),
)


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every picture as .png, with its caption as .txt beside it; the paths of the pictures, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, picture in enumerate(SHOWN, 1):
        path = folder / f"{number:02d}_{picture.colour}_{picture.subject}.png"
        draw(picture, "zorblin").save(path, optimize=True)
        path.with_suffix(".txt").write_text(f"{picture.caption}, {TRIGGER_WORD}\n", encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    print("\n".join(str(path) for path in write()))
