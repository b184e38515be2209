"""What a hook in Python comes to: reads the domain, sets a width that was decided elsewhere, prints it."""

import sys

from lxml import etree

domain = etree.parse(sys.stdin.buffer)
cpu = domain.getroot().find("cpu")
etree.SubElement(cpu, "maxphysaddr", mode="emulate", bits="43")
sys.stdout.buffer.write(etree.tostring(domain))
