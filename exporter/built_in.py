"""Chat templates of models whose repositories have an encoder script in place of one: DeepSeek-V3.2
(encoding_dsv32.py) and DeepSeek-V4 (encoding_dsv4.py). They are written as Jinja programs, which chat.py
takes apart like any other: what the script writes in its mode "chat", or "thinking" with the switch on.
Tools, tasks and reminders are left out."""

# What V4's script puts in front of all if the effort is the greatest.
EFFORT_MAX = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the "
    "root cause, rigorously stress-testing your logic against all potential paths, edge cases, and "
    "adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
DEEPSEEK_TURNS = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}<｜Assistant｜>"
    "{{ '<think>' if thinking and loop.last else '</think>' }}{% endif %}"
    "{% else %}{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
)
DEEPSEEK_V32 = "{{ bos_token }}" + DEEPSEEK_TURNS
DEEPSEEK_V4 = (
    "{{ bos_token }}{% if thinking and reasoning_effort == 'max' %}{{ "
    + repr(EFFORT_MAX)
    + " }}{% endif %}"
    + DEEPSEEK_TURNS
)
BUILT_IN = {"deepseek_v32": DEEPSEEK_V32, "deepseek_v4": DEEPSEEK_V4}  # by model_type
