"""Texts of eight languages about one subject: sentences with a thing and a place in each, short ones and long."""

from __future__ import annotations

from itertools import product

# Of each language: things, places, and sentences that name one of each.
_LANGUAGES = {
    "en": (
        ["a rope of silk", "a lantern that needs no oil", "boots with iron spikes", "a cloak of grey wool"],
        ["an icy cliff", "the drowned library", "a cave full of bats", "the market by night"],
        [
            "What do I need for {place}?",
            "For {place} you should take {thing}, and leave early.",
            "{thing}: {place}, 12 gold",
        ],
    ),
    "de": (
        ["ein Seil aus Seide", "eine Laterne ohne Öl", "Stiefel mit Eisendornen", "einen Mantel aus grauer Wolle"],
        ["eine vereiste Klippe", "die versunkene Bibliothek", "eine Höhle voller Fledermäuse", "den Markt bei Nacht"],
        [
            "Was brauche ich für {place}?",
            "Für {place} nimm am besten {thing}, und brich früh auf.",
            "{thing} – {place}",
        ],
    ),
    "fr": (
        ["une corde de soie", "une lanterne sans huile", "des bottes à crampons", "un manteau de laine grise"],
        ["une falaise gelée", "la bibliothèque engloutie", "une grotte pleine de chauves-souris", "le marché de nuit"],
        ["De quoi ai-je besoin pour {place} ?", "Pour {place}, prenez {thing} et partez tôt.", "{thing} ; {place}"],
    ),
    "es": (
        ["una cuerda de seda", "un farol sin aceite", "botas con púas de hierro", "una capa de lana gris"],
        ["un acantilado helado", "la biblioteca hundida", "una cueva llena de murciélagos", "el mercado de noche"],
        ["¿Qué necesito para {place}?", "Para {place} conviene llevar {thing} y salir temprano.", "{thing}, {place}"],
    ),
    "ru": (
        ["шёлковую верёвку", "фонарь без масла", "сапоги с шипами", "плащ из серой шерсти"],
        ["обледенелая скала", "затонувшая библиотека", "пещера с летучими мышами", "ночной рынок"],
        [
            "Что мне взять, если впереди {place}?",
            "Если впереди {place}, возьмите {thing} и выходите рано.",
            "{place}: {thing}",
        ],
    ),
    "zh": (
        ["一根丝绸绳子", "一盏不用油的灯笼", "一双带铁钉的靴子", "一件灰色羊毛斗篷"],
        ["结冰的悬崖", "沉没的图书馆", "满是蝙蝠的山洞", "夜里的集市"],
        ["去{place}需要什么?", "去{place}的话,最好带上{thing},早点出发。", "{place}——{thing}"],
    ),
    "ja": (
        ["絹のロープ", "油のいらないランタン", "鉄の爪がついた長靴", "灰色の羊毛のマント"],
        ["凍った崖", "沈んだ図書館", "コウモリだらけの洞窟", "夜の市場"],
        ["{place}へ行くには何が必要ですか?", "{place}なら{thing}を持って、早めに出発しなさい。", "{place}と{thing}"],
    ),
    "ar": (
        ["حبلًا من الحرير", "فانوسًا بلا زيت", "حذاءً بمسامير حديدية", "عباءة من الصوف الرمادي"],
        ["جرف جليدي", "المكتبة الغارقة", "كهف مليء بالخفافيش", "السوق ليلًا"],
        ["ماذا أحتاج من أجل {place}؟", "من أجل {place} خذ {thing} واخرج مبكرًا.", "{thing} - {place}"],
    ),
}


def texts() -> list[str]:
    """Returns 300 texts: of each language all its sentences, and longer ones made of several."""
    found: list[list[str]] = []
    for things, places, sentences in _LANGUAGES.values():
        own = [
            sentence.format(thing=things[(at + turn) % 4], place=place)
            for turn, (sentence, (at, place)) in enumerate(product(sentences, enumerate(places)))
        ]
        own += [" ".join(own[first :: 1 + first % 3]) for first in range(1, 10)]
        # Longer than any of these models reads.
        own += [" ".join(own * (1 + 3 * again)) for again in range(2)]
        own += [f"{one}\n{other}" for one, other in zip(own[:15], own[4:19], strict=True)]
        found.append(own)
    return [text for several in zip(*found, strict=True) for text in several][:300]
