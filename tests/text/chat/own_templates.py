OWN_TEMPLATES = {"a": "{{ messages[0].content }}"}
