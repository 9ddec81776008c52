"""python -m lipcert.bench --certify module:function --bound module:function"""

import sys

from lipcert.bench.run import main

sys.exit(main())
