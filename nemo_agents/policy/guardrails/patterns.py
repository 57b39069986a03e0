"""The patterns of `prompt-injection-detect`: what they look for and how much they weigh.

They run on normalised text (lower case, single spaces, no accents). A weight of 4 blocks by itself; lower
ones need company nearby. Every gap is bounded and every pattern names literals of which one must be there
(`needs`), so that ordinary text is passed over quickly and no text makes them slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

__all__ = ["BLOCK_AT", "NATIVE", "PATTERNS", "SQUEEZED", "STRUCTURAL", "STRUCTURAL_NEEDS", "WINDOW", "Pattern"]

BLOCK_AT: Final = 4
WINDOW: Final = 1200  # characters within which weights add up


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One pattern: its kind is what a verdict names."""

    kind: str
    weight: int
    needs: tuple[str, ...]
    regex: re.Pattern[str] = field(repr=False)


def _p(kind: str, weight: int, needs: str, regex: str) -> Pattern:
    return Pattern(kind=kind, weight=weight, needs=tuple(needs.split("|")), regex=re.compile(regex))


def _gap(words: int) -> str:
    return rf"(?:[\w'/-]{{1,24}}[ ,:.\"]{{1,2}}){{0,{words}}}?"


_BEFORE = r"(?:previous|previously|prior|preceding|above|earlier|foregoing|former|original|initial|existing|past)"
_ORDERS = (
    r"(?:instructions?|instruct|directives?|prompts?|rules|guidelines|guidance|commands?|constraints|restrictions"
    r"|programming|training|policies|orders|directions|safeguards|guardrails|safety measures|limitations|filters"
    r"|content policy|tasks?|conversations?|everything|text)\b"
)
_IGNORE = (
    r"\b(?:ignore|ignoring|disregard|disregarding|forget|forgetting|overrule|discard|abandon|pay no attention to"
    r"|(?:do not|don't|stop) (?:follow|following|obey|obeying)|set aside|cancel|void|nullify)\b[ ,:]{1,2}"
)
_YOUR = r"(?:your|the system|system|the developer|developer|openai'?s?|anthropic'?s?)"

PATTERNS: Final = (
    _p(
        "override",
        4,
        "instruct|prompt|direct|rules|guid|command|constraint|restrict|program|training|polic|order|safe|guardrail"
        "|limit|filter|task|conversation|everything|text",
        _IGNORE + _gap(4) + _BEFORE + " " + _gap(2) + _ORDERS,
    ),
    _p(
        "override",
        4,
        "above|before|prior|earlier|said|told|given|know|taught|learned",
        _IGNORE
        + r"(?:all|everything|anything|whatever|any|every|each)\b[ ,]{1,2}"
        + _gap(4)
        + r"(?:above|before|previously|earlier|prior|so far|(?:told|given|taught|instructed|said) (?:to )?you"
        r"|(?:were|been|you are|you're) (?:told|given|taught|instructed)|you (?:know|learned|were told|have been))\b",
    ),
    _p(
        "override",
        4,
        "ignore|ignoring|follow|obey|disregard|forget|override|bypass|overrule|skip|circumvent|disable|violate|break",
        r"\b(?:ignor(?:e|ing)|(?:do not|don't|stop) (?:follow|following|obey|obeying)|disregard(?:ing)?"
        r"|forget(?:ting)?|overrid(?:e|ing)|bypass(?:ing)?|overrule|circumvent|disable|violate|break|suspend"
        r"|drop)\b[ ,:]{1,2}"
        + _gap(2)
        + _YOUR
        + " "
        + _gap(3)
        + r"(?:instructions?|directives?|prompts?|rules|guidelines|programming|training|policies|polic(?:y|ies)"
        r"|safeguards|guardrails|safety|restrictions|limitations|constraints|filters?|ethics|alignment)\b",
    ),
    _p(
        "override",
        4,
        "instruct|directive|guideline",
        _IGNORE
        + r"(?:all|any|these|those|every|each)\b (?:of )?"
        + _gap(2)
        + r"(?:instructions|directives|guidelines|instruction)\b",
    ),
    _p(
        "override",
        2,
        "rules|prompt|context|command|polic|restrict|guardrail|filter",
        _IGNORE
        + r"(?:all|any|these|those|the|my|every)\b (?:of )?"
        + _gap(2)
        + r"(?:rules|prompts?|context|commands|policies|restrictions|guardrails|filters|constraints)\b",
    ),
    _p(
        "override",
        4,
        "no longer",
        r"\byou (?:are|will be|shall be)? ?no longer (?:be )?(?:bound|restricted|limited|constrained"
        r"|required to follow|subject to|need to follow|have to follow|governed|under)\b",
    ),
    _p(
        "override",
        4,
        "supersede|take precedence|takes precedence|overrides|replaces|replace all",
        r"\b(?:supersedes?|takes? precedence over|overrides?|replaces?)\b " + _gap(3) + r"(?:previous|prior|earlier"
        r"|above|existing|original|system|all other|your)\b "
        + _gap(2)
        + r"(?:instructions?|directives?|prompts?|guidelines|orders)\b",
    ),
    _p(
        "prompt-leak",
        4,
        "prompt|instruct|message|rules|guidelines|directives|configuration|programming",
        r"\b(?:reveal|show|print|repeat|output|display|leak|expose|dump|tell|give|recite|reproduce|translate"
        r"|summari[sz]e|return|write|copy|share|disclose|paste|provide|encode|spell|list|what (?:is|was|are|were)"
        r"|what's)\b "
        + _gap(5)
        + r"(?:your|you) (?:[\w-]{1,20} ){0,3}?(?:system|initial|original|developer|hidden|secret|internal|full"
        r"|exact|entire|first|confidential|pre)[ -](?:[\w-]{1,20} ){0,2}?(?:prompt|instructions?|message|rules"
        r"|guidelines|directives|configuration|programming)\b",
    ),
    _p(
        "prompt-leak",
        2,
        "prompt|instruct",
        r"\b(?:reveal|repeat|leak|expose|dump|recite|reproduce|disclose|print|output|show me|tell me)\b "
        + _gap(4)
        + r"(?:the|this|its|any) (?:[\w-]{1,20} ){0,2}?(?:system|initial|original|developer|hidden|secret"
        r"|confidential) (?:prompt|instructions?|message)\b",
    ),
    _p(
        "prompt-leak",
        3,
        "above|before this|before these|preceding",
        r"\b(?:repeat|print|output|copy|recite|reproduce|echo)\b "
        + _gap(2)
        + r"(?:everything|all (?:of )?(?:the )?(?:text|words|content|instructions|messages)|the (?:words|text"
        r"|sentences?|content|instructions|lines?|paragraphs?|message)|all) (?:that (?:is|was|came"
        r"|comes) )?(?:written |provided |given |stated )?(?:above|before this|before these|preceding)\b",
    ),
    _p(
        "prompt-leak",
        2,
        "verbatim|word for word|code block|exactly as",
        r"\b(?:verbatim|word for word|in a (?:markdown )?code ?block|exactly as (?:written|given|is))\b",
    ),
    _p(
        "prompt-leak",
        3,
        "starting with|beginning with|begins with|starts with",
        r"\b(?:starting|beginning|starts|begins) with (?:the (?:words|phrase|text|sentence) )?[\"']?(?:you are"
        r"|you're|system|## |as an ai|knowledge cutoff)",
    ),
    _p(
        "persona",
        4,
        "you are|you're|you will be|become|act as|pretend|role|simulate|imagine|behave|respond as",
        r"\b(?:you are|you're|you will be|become|act as|act like|pretend (?:to be|you are|that you are|you're)"
        r"|role-?play(?:ing)? as|simulate|behave (?:as|like)|respond as|answer as|imagine you are)\b[ ,:]{1,2}"
        + _gap(6)
        + r"(?:dan\b|unrestricted|unfiltered|uncensored|jailbroken|amoral|developer mode|god mode|evil (?:ai"
        r"|assistant|bot|confidant|twin)|(?:without|no|free (?:of|from)|not bound by|freed from|ignores?|has no"
        r"|have no) "
        + _gap(3)
        + r"(?:restrictions?|limitations?|limits|rules|filters?|filtering|guidelines|ethics|ethical|morals?"
        r"|censorship|constraints|boundaries|restraints|safeguards|content polic(?:y|ies)))",
    ),
    _p("persona", 4, "do anything now", r"\bdo anything now\b"),
    _p(
        "persona",
        4,
        "mode",
        r"\b(?:developer|god|dan|jailbreak|jailbroken|unrestricted|unfiltered|sudo|admin|debug"
        r"|maintenance) mode[\"']?(?: is| has been|:)? (?:now )?(?:enabled|activated|engaged"
        r"|unlocked)\b(?= ?[.,!:;\])]| (?:and|you|all|for)|$)",
    ),
    _p(
        "persona",
        3,
        "enable|activate|enter|switch|engage",
        r"\b(?:enable|activate|enter|switch (?:in)?to|engage) (?:the |your )?(?:developer|god|dan|jailbreak"
        r"|unrestricted|unfiltered|uncensored|opposite) mode\b",
    ),
    _p(
        "persona",
        2,
        "refuse|decline|reject",
        r"\b(?:never|not|cannot|can't|won't|without|don't|must not) (?:ever )?(?:refus(?:e|ing)|declin(?:e|ing)"
        r"|reject(?:ing)?)\b (?:to answer|to comply|any|a request|requests|me|an|my|user)?",
    ),
    _p(
        "persona",
        2,
        "ethical|moral|legal|safety|openai|content polic|censor",
        r"\b(?:no|without|regardless of|free from|ignore|not follow|disregard|any|bypass(?:ing)?)\b "
        + _gap(3)
        + r"(?:ethical|moral|legal|safety|openai(?:'s)?|content|censorship)\b ?"
        + _gap(2)
        + r"(?:guidelines?|restrictions?|constraints?|boundaries|considerations?|concerns?|polic(?:y|ies)|limits?"
        r"|limitations?|warnings?|filters?|implications?|consequences)\b",
    ),
    _p(
        "persona",
        2,
        "stay in character|break character|stay a dan|jailbreak|jailbroken|uncensored|unfiltered|amoral",
        r"\b(?:stay in character|break character|stay a dan|jailbroken|jailbreak prompt|amoral|unfiltered"
        r"|uncensored)\b",
    ),
    _p(
        "persona",
        2,
        "policy|policies",
        r"\b(?:openai|anthropic|content|usage)(?:'s)? (?:content |usage )?polic(?:y|ies)\b "
        + _gap(3)
        + r"(?:(?:do|does)(?:n't| not) apply|(?:is|are|have been|has been|been) (?:lifted|disabled|removed|suspended"
        r"|replaced))",
    ),
    _p(
        "new-task",
        2,
        "new|updated|real|actual|override|urgent",
        r"\b(?:new|updated|real|actual|override|urgent|revised) (?:[\w-]{1,16} )?(?:instructions?|tasks?|directives?"
        r"|objectives?|orders?|roles?|goals?|system prompt|assignment) ?(?::|follows?\b|is to\b|are as follows)",
    ),
    _p(
        "new-task",
        2,
        "from now on|starting now|from this point|henceforth|going forward",
        r"\b(?:from now on|starting now|from this point (?:on|onwards?|forward)|henceforth"
        r"|going forward)\b,? ?(?:you|ignore|respond|act|answer|your|only|always|reply|speak)\b",
    ),
    _p(
        "new-task",
        3,
        "your new|your real|your true|your actual|your only|your primary",
        r"\byour (?:new|real|true|actual|only) (?:[\w-]{1,16} )?(?:task|goal|objective|instructions?|role|purpose"
        r"|job|mission|identity|name|directive|persona)s? (?:is|are|will be)\b",
    ),
    _p(
        "new-task",
        2,
        "instead",
        r"\b(?:and |but )?instead,? (?:of that,? )?(?:you (?:must|should|will)|say|output|print|respond|reply|write"
        r"|follow|just|please|tell|send|execute|do the following|answer)\b",
    ),
    _p(
        "new-task",
        2,
        "end of|end]|/system|</",
        r"(?:\bend of (?:the )?(?:system|user|original|prior|document|context|input|untrusted"
        r"|retrieved)\b ?(?:prompt|instructions?|message|document|context|input|data)?|</?(?:system|instructions?"
        r"|user_query|system_prompt|admin)>|\[(?:system|admin|/?system prompt|end)\])",
    ),
    _p(
        "new-task",
        2,
        "admin|override|system|priority|emergency",
        r"\b(?:system|admin|administrator|security|emergency|priority|root) (?:override|alert|notice|update|command"
        r"|message)\b ?[:!\]-]",
    ),
    _p(
        "indirect",
        2,
        "before you can|before solving|before completing|before answering|before you continue",
        r"\bbefore (?:you can |you )?(?:solv|complet|finish|answer|continu|do|proceed)\w{0,4}\b "
        + _gap(6)
        + r"(?:task|question|request|query|with)\b",
    ),
    _p(
        "indirect",
        2,
        "following",
        r"\b(?:please |first |must |need to )(?:please )?(?:first )?(?:do|perform|execute|complete"
        r"|carry out) the following\b",
    ),
    _p(
        "indirect",
        2,
        "important",
        r"\b(?:this is an? )?(?:important|urgent|critical) (?:message|instructions?|notice|note) (?:from|to"
        r"|for)\b[ ,]{1,2}" + _gap(2) + r"(?:me|you|ai|llm|the|all|any|assistants?|agents?|models?|system)\b",
    ),
    _p(
        "indirect",
        3,
        "assistant|model|llm|agent|chatbot|ai |ai:|ai,|gpt|claude|ais|crawler",
        r"\b(?:note|message|instructions?|attention|warning|hint|notice|hey|dear|hello)[ ,:]{1,2}(?:to "
        r"|for )?(?:the |any |all )?(?:ai|llm|llms|language model|large language model|ai assistant|assistant"
        r"|ai model|ai agent|ai agents|agent|chatbot|gpt|chatgpt|claude|automated system)s?\b[ ,:]",
    ),
    _p(
        "indirect",
        3,
        "if you are|if you're|any ai|any llm|any language model|every ai",
        r"\b(?:if you(?: are|'re) (?:an? )?|any |every )(?:ai|llm|language model|large language model|ai assistant"
        r"|automated system|ai agent|chatbot)\b ?,?"
        + _gap(6)
        + r"(?:must|should|please|reading|processing|include|reply|respond|ignore|say|output|mention|recommend|add"
        r"|tell|write|you)\b",
    ),
    _p(
        "indirect",
        3,
        "the user|the human|the owner|the operator|anyone|your user",
        r"\b(?:do not|don't|never|without|avoid) (?:ever )?(?:tell|telling|inform|informing|mention|mentioning"
        r"|reveal|revealing|alert|alerting|notify|notifying|warn|warning"
        r"|let) (?:[\w']{1,12} ){0,4}?(?:to )?(?:the user|the human|the owner|the operator|anyone|your user)\b",
    ),
    _p(
        "exfiltration",
        3,
        "http|@|webhook|attacker|my server|this address",
        r"\b(?:send|forward|post|e?mail|upload|exfiltrate|transmit|leak|submit|append|encode)\b "
        + _gap(6)
        + r"(?:api[ _-]?keys?|passwords?|credentials|secrets?|private keys?|conversation|chat history|system prompt"
        r"|environment variables|session tokens?|access tokens?|personal data|user data|emails|messages|inbox"
        r"|files)\b "
        + _gap(6)
        + r"(?:to|at|into|via) (?:the |my |this )?(?:url |address |server )?[<\"'(]?(?:https?://|webhook|attacker"
        r"|server|address|[\w.+-]{1,64}@)",
    ),
    _p(
        "exfiltration",
        4,
        "](http",
        r"!\[[^\]]{0,100}\]\(https?://[^)\s]{1,200}\?[^)\s]{0,200}=(?:\{|\[|<|%7b|\$)",
    ),
    _p(
        "role-token",
        3,
        "<|endoftext|>|<|end|>|[/inst]|<</sys>>",
        r"<\|endoftext\|>|<\|end\|>|\[/inst\] ?\[inst\]|<</sys>>",
    ),
    _p(
        "override",
        4,
        "ignorier|vergiss|vergessen|missacht",
        r"\b(?:ignorier\w{0,3}|vergiss|vergessen sie|missachte\w{0,2})\b[ ,]{1,2}"
        + _gap(4)
        + r"(?:anweisung\w{0,2}|instruktion\w{0,2}|befehl\w{0,2}|vorgaben|regeln|richtlinien|anleitung\w{0,2})\b",
    ),
    _p(
        "override",
        4,
        "consigne|instruction|directive|ordres|regles",
        r"\b(?:ignore[rz]?|ignores|oublie[rz]?|oublies|ne tenez pas compte|ne tiens pas compte)\b[ ,]{1,2}"
        + _gap(4)
        + r"(?:instructions?|consignes?|directives?|ordres|regles)\b "
        + _gap(2)
        + r"(?:precedente?s?|anterieure?s?|ci-dessus|initiales?|avant)\b",
    ),
    _p(
        "override",
        4,
        "instruccion|ordenes|reglas|indicacion|instruco|instrucao|regras|ordens",
        r"\b(?:ignor\w{1,4}|olvid\w{1,4}|omit\w{1,3}|esquec\w{1,3}|desconsider\w{1,3}|descart\w{1,3})\b[ ,]{1,2}"
        + _gap(4)
        + r"(?:instruccion(?:es)?|ordenes|reglas|indicaciones|instruc(?:oes|ao)|regras|ordens)\b",
    ),
    _p(
        "override",
        4,
        "istruzion|ordini|regole|instructies|opdrachten|regels",
        r"\b(?:ignora\w{0,2}|dimentica\w{0,2}|trascura\w{0,2}|negeer|vergeet)\b[ ,]{1,2}"
        + _gap(4)
        + r"(?:istruzion[ei]|ordini|regole|instructies|opdrachten|regels)\b",
    ),
)

# Written together because they were spaced out.
SQUEEZED: Final = (
    _p(
        "spaced-out",
        4,
        "ignore|disregard|forget|override",
        r"(?:ignore|disregard|forget|override)(?:all)?(?:of)?(?:the|your|my|any)?(?:previous|prior|above|earlier"
        r"|system)(?:system)?(?:instruction|prompt|rule|directive|guideline|message)",
    ),
    _p(
        "spaced-out",
        4,
        "systemprompt",
        r"(?:reveal|show|print|repeat|output|leak|tell)(?:me)?(?:your|the)systemprompt",
    ),
)

# On text before folding: scripts that folding would garble.
NATIVE: Final = (
    _p(
        "override",
        4,
        "忽略|无视|忘记|忽視|無視|忘掉",
        r"(?:忽略|无视|忘记|忽視|無視|忘掉).{0,14}(?:指令|指示|提示|规则|規則|命令|说明)",
    ),
    _p(
        "override",
        4,
        "инструкц|указани|правил|команд",
        r"\b(?:про)?(?:игнорируй\w{0,2}|игнорировать|забудь\w{0,2}"
        r"|отмени\w{0,2}) (?:\w{1,24} ){0,4}?(?:инструкци\w{0,2}|указани\w{0,2}|правил\w{0,2}|команд\w{0,2})",
    ),
    _p("override", 4, "指示|命令|ルール|プロンプト", r"(?:指示|命令|ルール|プロンプト).{0,6}(?:無視|忘れ)"),
)

# What every match of a structural pattern has in it.
STRUCTURAL_NEEDS: Final = ("<|", "<<sys>>", "<start_of_turn>")
# Block by themselves, in every text that is not the application's own.
STRUCTURAL: Final = (
    _p(
        "role-token",
        4,
        "<|im_|<|system|>|<|user|>|<|assistant|>|<|start_header_id|>|<|eot_id|>|<|begin_of_text|>|<|endofprompt|>"
        "|<<sys>>|<start_of_turn>",
        r"<\|(?:im_start|im_end|im_sep|system|user|assistant|start_header_id|end_header_id|eot_id|begin_of_text"
        r"|endofprompt)\|>|<<sys>>|<start_of_turn>(?:user|model|system)",
    ),
)
