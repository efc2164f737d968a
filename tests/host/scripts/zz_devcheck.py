import sys, types, asyncio


def main(pack, arguments):
    if arguments.get("stub"):
        m = types.ModuleType(pack.__name__ + ".nodes.train")
        sys.modules[m.__name__] = m
        from comfy_api.latest import io

        class TrainTriLoRA(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="TrainTriLoRA", inputs=[], outputs=[])

            @classmethod
            def execute(cls):
                return io.NodeOutput()

        m.TrainTriLoRA = TrainTriLoRA
        for name in arguments["stub"]:
            mm = types.ModuleType(pack.__name__ + name[0])
            sys.modules[mm.__name__] = mm
            for a in name[1:]:
                setattr(mm, a, ("sum",))
    ext = asyncio.run(pack.comfy_entrypoint())
    nodes = asyncio.run(ext.get_node_list())
    out = {}
    for n in nodes:
        info = n.GET_NODE_INFO_V1()
        out[info["name"]] = [info["input_order"], info["output_name"], info["output"]]
    return out
