"""The characters that the writer `glyphs` draws, and the classes that they make.

A class is a text of characters with one shape. Glyphs are drawn at one size, so that these are one
class: look-alikes of several scripts, as A, Greek Α and Cyrillic А; and upper and lower case that
differ only by size, as C and c, V and v, or Cyrillic Ж and ж. Other cases are two classes, as K and
k, or U and u, whose stem differs. 0 and O, 1 and l, and 3 and З are apart: most fonts draw them
differently. Where a font does not, the writer keeps the first class only.
"""

from unicodedata import name

# Fonts draw characters that they lack as these: two that do not exist, and the dotted circle.
MISSING = "\U0010ffff\ufdd0\u25cc"

DIGITS = "0 1 2 3 4 5 6 7 8 9"
LATIN = """
AΑА aа BΒВв b CcСсϹϲ D d EΕЕ eе F f G g HΗНн h IlΙІӀӏ iі JЈ jј KΚКкκ k L MΜМм m NΝ n OoΟοОо
PΡР pрρ Q q R r SsЅѕ TΤТт t U u VvνѴѵ Ww XxΧХх YΥҮ yуУ ZzΖ
Æ æ Œœ Øø Þ þ ÐĐ ð đ ß Ł ł ħ Ŋ ŋ ƒ
À à Á á Â â Ã ã Ä ä Å å Çç È è É é Ê ê ËЁ ëё Ì ì Í í Î î ÏЇ ïї Ñ ñ Òò Óó Ôô Õõ Öö Šš
Ù ù Ú ú Û û Ü ü Ý ý Ÿ ÿ Žž
Ā ā Ă ă Ą ą Ćć Čč Ď ď Ē ē Ę ę Ě ě Ğ ğ Ĥ ĥ Ĺ ĺ Ľ ľ Ń ń Ň ň Őő Ŕ ŕ Ř ř Śś Şş Ť ť Ů ů Ű ű Ŵŵ Żż
"""
GREEK = """
ΓГг Δ∆ ΘѲ Λ Ξ ΠПп∏ Σ∑ ΦФф ΨѰ Ω\u2126
α β γ δ ε ζ η θ ι λ μµ ξ π σ ς τ υ φϕ χ ψ ω
"""
CYRILLIC = """
Б б Дд Жж Зз Ии Йй Лл Цц Чч Шш Щщ Ъъ Ыы Ьь Ээ Юю Яя Єє Љљ Њњ Ћ ћ Ђ ђ Џџ Ґґ Ѓѓ Ќќ Ў ў Ѣѣ
"""
# Each letter with and without a dot inside, which marks another sound. Some have no such form.
HEBREW = " ".join(chr(0x5D0 + i) + chr(0xFB30 + i) for i in range(27))
# Short, long and heavy.
ARROWS = "←⟵⬅ ↑⬆ →⟶➔➙➜➞➡ ↓⬇ ↔⟷⬌ ↕⬍ ↖⬉ ↗⬈ ↘⬊ ↙⬋ ↵↲ ⇐⟸ ⇑ ⇒⟹ ⇓ ⇔⟺"
SIGNS = "! ? # $ & @ * £ € ¥ § ¶ © ® ™ † ‡ ¡ ¿ « »"
MATHEMATICS = """
+ −-–— × ÷ = ≠ ± < > ≤ ≥ ≈ ~∼ ≡ ¬ ∂ ∇ √ ∞ ∫ ∩ ∪ ∧ ∨ ∈ ∋ ⊂ ⊃ ⊆ ⊇ ∅ ∀ ∃ ∝ ∠ ⊥ ⊕ ⊗ ∴ % ‰ ◊ ( ) [ ] { }
"""
CLASSES = tuple(
    " ".join((DIGITS, LATIN, GREEK, CYRILLIC, HEBREW, ARROWS, MATHEMATICS, SIGNS)).split()
)
"""Characters of each class. No character is in two classes. The first ten are the digits."""

_IN_EVERY_NAME = {"LATIN", "GREEK", "CYRILLIC", "HEBREW", "LETTER", "SMALL", "DIGIT"}


def class_name(characters: str) -> str:
    """Return the name of a class: its first character and, unless that is ASCII, what it is called.

    Names are like `7`, `A`, `α alpha`, `Ж capital zhe`, `→ rightwards arrow`. The words are those
    of Unicode, without script, `letter` and `small`.
    """
    first = characters[0]
    if first.isascii():
        return first
    words = (word for word in name(first).split() if word not in _IN_EVERY_NAME)
    return f"{first} {' '.join(words).lower()}"
