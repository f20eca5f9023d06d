"""Templates of every kind that published ones are of, written for these tests."""

THINK_HISTORY = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}[{{ m['role'] }}]{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# Answers lose their thoughts up to the last question; a switch closes them at once.
THOUGHTS = """
{%- set ns = namespace(last=-1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == 'user' and message.content is string and not message.content.startswith('<result>') %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|begin_turn|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'Tools:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|end_turn|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|begin_turn|>system\\n' + messages[0].content + '<|end_turn|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|begin_turn|>' + message.role + '\\n' + content + '<|end_turn|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|begin_turn|>' ~ message.role ~ '\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\\n<call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}
            {{- '}\\n</call>' }}
        {%- endfor %}
        {{- '<|end_turn|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|begin_turn|>user' }}{% endif %}
        {{- '\\n<result>\\n' + content + '\\n</result>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|end_turn|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|begin_turn|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# Macros that walk through schemas and arguments; parts of contents; a block that is set, and a loop that is left.
MACROS = """
{%- macro kind(schema) %}
    {%- if schema.enum %}{{ schema.enum | map('upper') | join('" | "') }}{% else %}{{ schema.type | default('any') }}{% endif %}
{%- endmacro %}
{%- macro text(content) %}
    {%- if content is string %}{{ content | trim }}{% elif content is iterable %}
        {%- for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- set header %}{{ bos_token }}<|tools|>{% endset %}
{{- header }}
{%- for tool in tools or [] %}
    {%- set f = tool.function %}
    {{- '\\n### ' ~ f.name ~ ': ' ~ f.description | replace('"', "'") | upper }}
    {%- for name, schema in f.parameters.properties | dictsort %}
        {{- '\\n  %s (%s)%s' % (name, kind(schema), '' if name in f.parameters.required else ' optional') }}
    {%- endfor %}
    {{- f.parameters | tojson(indent=2) | indent(2) }}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '\\n<|{}|>'.format(message.role) }}
    {{- text(message.content) }}
    {%- for call in message.tool_calls | default([], true) %}
        {%- set arguments = call.function.arguments %}
        {{- '\\n<|call|>' ~ call.function.name }}
        {%- if arguments is mapping %}
            {%- for name, value in arguments.items() %}
                {{- '\\n<arg name="' + name + '">' ~ (value | string if value is not string else value) ~ '</arg>' }}
            {%- endfor %}
        {%- else %}
            {{- arguments }}
        {%- endif %}
        {{- '<|done|>' }}
    {%- endfor %}
    {%- if loop.index0 > 40 %}{% break %}{% endif %}
    {{- eos_token }}
{%- endfor %}
{{- '<|assistant|>' if add_generation_prompt else '' }}
"""

# Turns have to alternate; the system message goes into the first of them; HTML's escapes by a filter that few mean.
STRICT = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, rest = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set system, rest = none, messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Turns must alternate: user, assistant, user, and so on') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' }}
        {%- if loop.first and system is not none %}{{ system | trim ~ '\\n\\n' }}{% endif %}
        {{- message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' + message['content'] | trim }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""

MARKED_SAFE = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<|call|>' + c.function.name + '<|args|>' + c.function.arguments | tojson | safe + '<|done|>' }}{% endfor %}{{ eos_token + '\n' }}"
    "{% endfor %}{{ strftime_now('%Y') | length }}{{ ['<|x|>', '<|y|>'] | join('<|z|>') }}{{ '<|assistant|>' | safe }}"
)

PARTED = (
    "{% for m in messages %}{% set head, _, tail = m.content.partition('?') if m.content is string else ('', '', '') %}"
    "{{ '<|turn|>' + m.role | capitalize + ': ' + head.removeprefix(' ') + tail[:3] }}"
    "{% for line in (m.content or '').splitlines() %}{{ '<|line|>' ~ line | reverse ~ loop.index }}{% endfor %}"
    "{% for word in m.content.split() %}{% if loop.first or loop.last %}<|word|>{{ word | title }}{% endif %}{% endfor %}"
    "{{ '<|end_turn|>' * 2 }}{% endfor %}{{ '<|turn|>Assistant:' }}"
)

OWN_TEMPLATES = {
    "think history": THINK_HISTORY,
    "thoughts": THOUGHTS,
    "macros": MACROS,
    "strict": STRICT,
    "marked safe": MARKED_SAFE,
    "parted": PARTED,
}
