"""Names of files and of methods that several rooms share; it imports nothing, so that the command line starts fast."""

JOINT = "+"  # between the methods of a composition: "superpos+multi-mask"
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
CONFIG_FILE = "softprompt_config.json"  # of a saved prompt
PROMPT = "prompt"  # the folder of the prompt within a run folder
