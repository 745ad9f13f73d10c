"""A pod of ``deploy/kubernetes`` as plain processes in namespaces of one machine: no container engine, no cluster."""
